// Package enclave declares what Claviger needs from a trusted execution
// environment, seen from inside it: a quote over 64 bytes of its own choice and
// a sealing key.
//
// Implementations live in sub-packages, and a program links the ones that it
// wants:
//
//   - ego: Intel SGX through EGo's runtime (build tag "ego", needs cgo);
//   - tdxguest: Intel TDX through the kernel's configfs-tsm interface;
//   - sim: simulated machines and images under a simulated root of trust. The
//     production daemons never link it.
//
// Nothing here is secret-bearing by itself; keys are handles of package secret.
package enclave
