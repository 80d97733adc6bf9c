// Package mail seals one request to an enclave's key and one reply to its caller,
// through hosts and proxies that may read, change, replay and swap them.
//
// The caller needs nothing but the enclave's public key:
//
//	to, err := mail.ParseRecipient(pub)              // from the key service, signed
//	sealed, reply, err := mail.SealRequest(to, info, aad, body)
//	…                                                // send sealed, receive answer
//	body, err := reply.Open(aad, answer)
//
// The enclave holds the private half, which the key service gives only to it:
//
//	body, reply, err := identity.OpenRequest(info, aad, sealed)
//	answer, err := reply.Seal(aad, result)
//
// # Construction
//
// HPKE of RFC 9180, base mode, from the standard library: DHKEM(X25519,
// HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. A request carries a fresh public
// key of the caller's inside its sealed part. The reply is sealed to that key
// with, in its info, a secret exported from the request's context. So only who
// could open the request can answer it, a reply opens for its own request alone,
// and a reply stays secret when the enclave's key leaks later.
//
// info names what the message is for (protocol, function, code) and aad what
// travels beside it; both must be equal on both sides, and both are framed under a
// versioned label here. Plaintexts are padded to powers of two from 1 KiB, so the
// host learns a size bucket.
//
// # What it does not do
//
// Base mode does not authenticate the sender: anyone may send a request; what it
// may do is decided by what is inside. A request opens as often as it is
// delivered: who acts on it must recognise replays.
package mail
