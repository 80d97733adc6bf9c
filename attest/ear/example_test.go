package ear_test

import (
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/claviger/claviger/attest/ear"
)

// A relying party checks the result that an enclave brings, without asking anybody. It pinned the verifier's key before.
func ExampleVerify() {
	const policy = "urn:claviger:policy:…" // of the constraint that the relying party wants to hold
	check := func(token string, pinned ed25519.PublicKey, nonce []byte) error {
		keys, err := ear.NewKeys(pinned)
		if err != nil {
			return err
		}
		result, err := ear.Verify(token, keys, time.Now(), nonce)
		if err != nil {
			return err
		}
		if !result.Affirms(policy) {
			return fmt.Errorf("status %s: %s", result.Appraisal.Status, result.Appraisal.Verdict.Error)
		}
		return nil
	}
	pinned := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey) // from a verified cluster
	fmt.Println(check("not a token", pinned, []byte("eight bytes or more")))
	// Output: ear: malformed: a token has three parts
}
