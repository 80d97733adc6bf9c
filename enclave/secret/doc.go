// Package secret holds key material behind handles that refuse to be printed,
// logged, marshalled or compared by accident.
//
// A Key is passed by value and refers to one buffer: copies share it, and
// Destroy empties it for all of them. The zero Key holds nothing: it equals no
// key, derives none and reveals nothing. The bytes leave only through Reveal,
// which is named so that a review can search for it.
//
// The package does not defend against a debugger or a memory dump: in an enclave
// that is the hardware's part. Go may also have copied the bytes it was given
// before New saw them; callers keep those copies short-lived.
//
// Derivation is HKDF-Expand of RFC 5869 with SHA-512 over a versioned, framed
// label that includes the output's length; see Key.Derive.
package secret
