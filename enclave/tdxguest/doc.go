// Package tdxguest is the enclave.TEE of an Intel TDX guest, through the kernel's
// configfs-tsm interface (Linux 6.7 or later, module tdx_guest).
//
// A TD has no sealing key: its memory is protected, but nothing that survives a
// restart is bound to its measurement. SealingKey returns enclave.ErrUnsupported;
// use a key of the KDS.
//
// What the kernel returns is checked for shape and for the report data that was
// asked for, because the quote comes from the host's quote generation service.
package tdxguest
