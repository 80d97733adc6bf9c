// Package client asks a Claviger cluster for keys over channels that are attested both ways.
//
// A client knows one thing about its cluster: the 32-byte cluster id, pinned in measured bytes. Addresses, replies and the
// network are the host's and prove nothing. Each connection proves itself before a request is sent on it:
//
//  1. the channel is TLS 1.3 with evidence bound to it (package ratls), for this cluster id and an epoch not below the highest seen
//  2. the node's statement hashes to the pinned id, and the cluster identity key in it signed the node's membership, which
//     names the very key that the node proved on this channel
//  3. the manifest's root of trust is the client's own
//  4. the node's quote verifies under that root, with the collateral bundle that the node sent
//  5. the quote satisfies one constraint of the manifest's node policy
//
// Replies are checked once more: a key comes with a receipt that the identity key signed for exactly this release, a
// public key with the identity key's signature over everything it is bound to.
//
// Lost connections, "not_leader", "no_quorum", "busy" and other passing troubles are retried over all endpoints, with jittered
// pauses, until the caller's context ends. A refusal is final: it is an *api.Problem, and a *ratls.RefusedError as well where
// the node refused the client in the handshake. An endpoint that does not prove to be a node of the cluster, or
// reports a fault of its own ("internal") or the end of its epoch, is not asked again in the same call; when no endpoint is left the
// call fails with what they said, [ErrNode] if that was not a node. A call begins with the endpoint that answered
// last, and ends with those that gave no answer when they were asked last: calls with less time than Config.AttemptTimeout get
// past a silent one.
//
// What a client cannot see: collateral that is withheld but not yet expired, a fork of the cluster to which an old majority was
// isolated, and, without Config.MinEpoch from the app's own storage, an epoch rolled back across the app's restart.
package client
