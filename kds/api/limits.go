package api

// Limits of one request. A server checks them before it parses anything; the
// sizes are those of the decoded value unless the name says Body.
const (
	MaxConstraint = 4 << 10  // bytes of constraint text
	MaxName       = 256      // bytes of a key name
	MaxPurpose    = 32       // bytes of a purpose
	MaxQuote      = 64 << 10 // bytes of a raw quote
	MaxCollateral = 64 << 10 // bytes of a marshalled collateral bundle; it must fit one replicated entry
	MinNonce      = 8        // bytes of a nonce, the bounds of EAT attestation results
	MaxNonce      = 64

	MaxKeyBody    = 16 << 10  // JSON body of a key or public key request
	MaxAttestBody = 256 << 10 // JSON body of an attest request: quote and bundle in base64, and a constraint
	MaxReplyBody  = 512 << 10 // JSON body of any reply a client reads

	MaxManifest    = 64 << 10  // bytes of an encoded genesis manifest
	MaxStatement   = 152 << 10 // bytes of an encoded node statement: a manifest, a key, a membership, a node policy
	MaxNodePolicy  = 64        // constraints in a manifest
	MaxOperators   = 64        // operator keys in a manifest
	MaxSlot        = 32        // bytes of a slot name
	MaxAddress     = 256       // bytes of a network address
	MaxMembers     = 64        // members of a cluster
	MaxProof       = 64        // hashes of an inclusion proof
	MaxRecord      = 16 << 10  // bytes of an encoded release record
	MaxOpenSlots   = 9         // slots that a manifest may leave open to any platform
	MaxAdmin       = 64 << 10  // bytes of an encoded admin statement
	MaxSignedAdmin = 72 << 10  // bytes of an encoded admin statement with its approvals; it must fit one entry
	MaxAdminBody   = 112 << 10 // JSON body of an admin request: a signed statement in base64
	MaxRecovery    = 16 << 10  // bytes of an encoded recovery statement
	MaxOldServers  = 128       // servers that a recovery statement names
	MaxRecoveryKey = 2048      // bytes of the public key that roots are wrapped to
	MaxEpoch       = 1024      // of a recovery: archives do not name their epoch, and whoever recovers later has to find it; root generations end at 256
	maxLabelName   = 64        // bytes of a cluster's display name
	maxJSONDepth   = 32        // nesting of a JSON body
	maxTreeSize    = 1<<63 - 1 // leaves; the arithmetic of the log is signed
)
