// Package ratls joins remote attestation to TLS 1.3: a channel whose ends prove, before the first byte of application
// data, which enclave holds the key of this very connection.
//
// The TLS layer authenticates nothing but keys. Both sides present a self-signed leaf (P-256 or Ed25519); of the
// certificate only the public key is believed. ALPN is "claviger/1" without fallback, the version is exactly 1.3, and
// session tickets are off, so every connection attests anew. After the TLS handshake the two sides exchange four frames:
//
//  1. client → server: the protocol that will run over the channel, and whether the client wants evidence
//  2. server → client: cluster id, epoch, whether evidence is wanted, the server's evidence
//  3. client → server: the client's evidence
//  4. server → client: accepted
//
// Either side may send a refusal in place of its frame; it reaches the peer as a [*RefusedError].
//
// Evidence is a quote whose 64 bytes of report data are
//
//	SHA-512(CBOR["claviger/ratls/v1", protocol, role, cluster id, epoch, exporter, client key, server key])
//
// where exporter is the 32 bytes that RFC 8446 section 7.5 exports for "EXPORTER-claviger-ratls-1" and the keys are SHA-256
// of the two SubjectPublicKeyInfo structures. Each field answers an attack: the exporter stops replay and relay into another
// connection; the keys name both ends (the exporter does not cover the client's certificate); the role stops reflection; the
// protocol, cluster id and epoch stop diversion of genuine evidence to another purpose, cluster or time. Keys of the two
// sides must differ. The collateral and the attachment that travel with a quote are not covered by its report data: they are
// protected by TLS under the key that the quote vouches for, and judged by whoever reads them.
//
// What is not checked here: which enclave the evidence shows. [Config].Verify answers that, and returns the proof.
// Where Verify is nil the peer is known by its key alone.
//
// # Key-bound TLS
//
// For peers that cannot speak the above, plain EGo and Open Enclave programs, [KeyBoundConfig] puts the evidence into the
// certificate as those do, with report data that is the hash of its public key. Such evidence says that a genuine enclave
// made the key, at some time: the same certificate serves any connection, role and peer for as long as the key lives. It has
// types of its own, [KeyBoundPeer] and [KeyBoundFromContext], so that it never passes for channel-bound evidence, and there
// is no fall-back from one to the other.
//
// # HTTP
//
// [ConfigureServer] prepares an http.Server for the listeners of both modes, in HTTP/1.1 and HTTP/2; [Dialer] and
// [KeyBoundDialer] have a [Transport] each. [RequireChannelBound] keeps handlers for proved channels.
//
// DESIGN.md has the formats, their sources, and what each mode does not stop.
package ratls
