// Package api holds what the key derivation service and its clients say to
// each other: the JSON requests and replies, the problem document of every
// refusal, the genesis manifest and the statements which the cluster identity
// key signs. It is pure: bytes in, values out, no clock and no I/O.
//
// Everything that is hashed or signed is core deterministic CBOR (RFC 8949
// section 4.2.1), begins with a versioned label, and is refused on decoding
// unless encoding it again gives the same bytes. Verifying a signature never
// trusts the JSON around it: the signed message is rebuilt from the fields.
//
// Limits are in limits.go, one per line with its reason.
package api
