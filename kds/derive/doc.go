// Package derive computes keys from a root secret and what a key belongs to.
// It is the whole of the derivation and nothing else: no policy, no evidence,
// no storage. The specification, which an independent implementation can be
// written from, and the published known-answer vectors are in kds/DESIGN.md
// and testdata/vectors.json; both are frozen, because a changed byte here
// would lose every key ever released.
//
//	PRK = HKDF-Extract(SHA-512, salt = cluster id, IKM = root)
//	OKM = HKDF-Expand(SHA-512, PRK, info, L)
//	info = CBOR ["claviger/derive/v1", realm, binding, name, purpose, counter, L]
//
// with core deterministic CBOR (RFC 8949 section 4.2.1) and HKDF of RFC 5869.
// The encoding frames every field, so two different tuples never share an info.
package derive
