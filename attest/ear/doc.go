// Package ear makes and checks signed attestation results: EAT Attestation Results (draft-ietf-rats-ear-04) with the
// trustworthiness claims of AR4SI (draft-ietf-rats-ar4si-10), as JWTs signed with Ed25519.
//
//	appraisal, err := ear.Appraise(verified.Claims(), ear.Policy{ID: id, Accepted: true, Executables: ear.ApprovedAtBoot})
//	token, err := ear.Issue(signer, ear.Statement{Issuer: issuer, IssuedAt: now, Expires: now.Add(ear.DefaultLifetime), …})
//
//	keys, err := ear.NewKeys(pinned)
//	result, err := ear.Verify(token, keys, time.Now(), nonce)
//	if err == nil && result.Affirms(policyID) { … }
//
// A result that verifies says that the holder of the key wrote it, for this nonce, within its time. It guarantees
// nothing else about the verifier: which keys to trust is the caller's to pin. A status is never better than its vector
// allows, and nothing but Affirms is an approval: the zero Result, the status none and every error deny. An affirmation is by a
// policy that somebody chose, so the caller names the one it means.
//
// The mapping from claims to AR4SI's numbers, the meaning of each claim, the profile of JWT that is accepted and the
// reasons are in DESIGN.md beside this file. The package is handed instants and keys; it reads no clock, file or network.
package ear
