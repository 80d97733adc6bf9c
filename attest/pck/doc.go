// Package pck reads and verifies the X.509 side of a DCAP quote: the chain of the provisioning certification key (PCK),
// the SGX extensions of its leaf, the chain that signs collateral, and the revocation lists.
//
// Checks are made one by one as Intel prescribes them instead of by a general path builder: a chain has a fixed shape, each
// certificate a fixed name, and the root is trusted by its public key, which the caller passes in. Parsing verifies
// nothing; a Chain or SigningChain may be used only after its Verify, and only at that instant.
//
// A Store does the same for many chains under one root key, and remembers the certificates that are in all of them.
//
// Sources: Intel SGX PCK Certificate and Certificate Revocation List Profile Specification, revision 1.5; Intel SGX and
// TDX PCS API version 4, "Get PCK Certificate", "Get Revocation List"; RFC 5280 for the encodings.
package pck
