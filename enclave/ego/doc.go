// Package ego is the enclave.TEE of Intel SGX through EGo's runtime.
//
// It does its work in programs built by ego-go with the build tag "ego" (which
// needs cgo), signed by ego sign and started by ego run. Built without the tag,
// Open fails with enclave.ErrUnsupported and says what to do, so that one source
// serves both.
//
// EGo answers outside an enclave, and in its simulation mode, with seal keys of
// all zero bytes. Open and SealingKey refuse such a key with ErrSimulation:
// whatever it protected, everybody could open.
//
// Quotes come from EGo as Open Enclave reports, a 16-byte header and an SGX
// quote of version 3. The header is checked field by field and stripped, and the
// quote must carry the report data that was asked for, since the quoting enclave
// is reached through the host.
package ego
