// Package sim simulates machines with SGX and TDX, and enclaves on them, under
// the simulated Intel of package simpki.
//
// A World is one simulated Intel. Its file holds a seed: every process that opens
// it sees the same root of trust, the same machines and, on one day, the same
// collateral, so that a cluster of separate processes can attest itself. A
// Machine is one platform with its own identity and sealing keys. An Image is
// what is launched on it; the measurements are hashes of the image, as they would
// be on hardware, and Launch returns an enclave.TEE.
//
// Evidence from here verifies on the production path under the simulated root,
// and only there. Whoever has the world file can mint any evidence and derive any
// sealing key: it protects nothing. The production daemons do not link this
// package.
package sim
