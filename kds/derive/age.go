package derive

import (
	"fmt"
	"strings"

	"filippo.io/age"

	"github.com/claviger/claviger/enclave/secret"
)

// AgeRecipient returns the ordinary age recipient of the public half of an
// age key, 32 bytes; its String begins with "age1".
func AgeRecipient(public []byte) (*age.X25519Recipient, error) {
	if len(public) != 32 {
		return nil, fmt.Errorf("%w: age public key of %d bytes, want 32", ErrParams, len(public))
	}
	return age.ParseX25519Recipient(bech32("age", public))
}

// AgeIdentity returns the ordinary age identity of an age key: a 32-byte
// scalar. The identity's String reveals the key.
func AgeIdentity(scalar secret.Key) (*age.X25519Identity, error) {
	if scalar.Len() != 32 {
		return nil, fmt.Errorf("%w: age scalar of %d bytes, want 32", ErrParams, scalar.Len())
	}
	raw := scalar.Reveal()
	defer clear(raw)
	return age.ParseX25519Identity(strings.ToUpper(bech32("age-secret-key-", raw)))
}

// bech32Charset is the alphabet of BIP 173.
const bech32Charset = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"

// bech32 encodes data under a lower-case human-readable part as BIP 173
// defines it, without its length limit, which age lifts. age exports no
// constructor from raw keys.
func bech32(hrp string, data []byte) string {
	groups := fiveBits(data)
	values := make([]byte, 0, 2*len(hrp)+1+len(groups)+6)
	for i := range len(hrp) {
		values = append(values, hrp[i]>>5)
	}
	values = append(values, 0)
	for i := range len(hrp) {
		values = append(values, hrp[i]&31)
	}
	values = append(values, groups...)
	sum := polymod(append(values, 0, 0, 0, 0, 0, 0)) ^ 1
	clear(values)
	var b strings.Builder
	b.WriteString(hrp)
	b.WriteByte('1')
	for _, g := range groups {
		b.WriteByte(bech32Charset[g])
	}
	clear(groups)
	for i := range 6 {
		b.WriteByte(bech32Charset[sum>>(5*(5-i))&31])
	}
	return b.String()
}

// fiveBits regroups bytes into 5-bit values, most significant first, zero
// bits padding the last.
func fiveBits(data []byte) []byte {
	out := make([]byte, 0, (len(data)*8+4)/5)
	var acc uint32
	bits := 0
	for _, b := range data {
		acc = acc<<8 | uint32(b)
		for bits += 8; bits >= 5; {
			bits -= 5
			out = append(out, byte(acc>>bits&31))
		}
	}
	if bits > 0 {
		out = append(out, byte(acc<<(5-bits)&31))
	}
	return out
}

// polymod is the checksum polynomial of BIP 173.
func polymod(values []byte) uint32 {
	generator := [5]uint32{0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3}
	sum := uint32(1)
	for _, v := range values {
		top := sum >> 25
		sum = sum&0x1ffffff<<5 ^ uint32(v)
		for i, g := range generator {
			if top>>i&1 == 1 {
				sum ^= g
			}
		}
	}
	return sum
}
