package engine

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
)

// maxCrypto bounds the data of one crypto.subtle operation, in bytes: a few milliseconds of work.
const maxCrypto = 8 << 20

// crypto answers the operations behind crypto.subtle with Go's own implementations: constant-time, and fast enough that
// their time is negligible beside the deadline.
func (c *hostCall) crypto(op int32) value {
	var out []byte
	var r refusal
	switch op {
	case opDigest:
		out, r = c.digest()
	case opHMAC:
		out, r = c.hmac()
	default:
		out, r = c.gcm(op == opSeal)
	}
	if r != 0 {
		return c.refuse(r)
	}
	return c.give(out)
}

func hashOf(bits int32) func() hash.Hash {
	switch bits {
	case 256:
		return sha256.New
	case 384:
		return sha512.New384
	case 512:
		return sha512.New
	}
	return nil
}

func (c *hostCall) digest() ([]byte, refusal) {
	newHash, data := hashOf(c.integer(1)), c.bytes(2, maxCrypto)
	if c.bad || newHash == nil {
		return nil, refuseInvalid
	}
	if !c.st.charge(len(data)) {
		return nil, refuseQuota
	}
	h := newHash()
	h.Write(data)
	return h.Sum(nil), 0
}

func (c *hostCall) hmac() ([]byte, refusal) {
	newHash, key, data := hashOf(c.integer(1)), c.copied(2, 1024), c.bytes(3, maxCrypto)
	if c.bad || newHash == nil {
		return nil, refuseInvalid
	}
	if !c.st.charge(len(data)) {
		return nil, refuseQuota
	}
	defer clear(key)
	m := hmac.New(newHash, key)
	m.Write(data)
	return m.Sum(nil), 0
}

// copied is bytes for an argument that is needed while later ones are read.
func (c *hostCall) copied(i uint32, max int) []byte { return append([]byte(nil), c.bytes(i, max)...) }

func (c *hostCall) gcm(seal bool) ([]byte, refusal) {
	key, iv, aad, data := c.copied(1, 32), c.copied(2, 16), c.copied(3, maxCrypto), c.bytes(4, maxCrypto)
	defer clear(key)
	// Only the 96-bit nonce: the others run through GHASH and invite collisions (SP 800-38D §8.2).
	if c.bad || len(iv) != 12 {
		return nil, refuseInvalid
	}
	if !c.st.charge(len(data) + len(aad)) {
		return nil, refuseQuota
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, refuseInvalid
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, refuseInvalid
	}
	if seal {
		return aead.Seal(nil, iv, data, aad), 0
	}
	plain, err := aead.Open(nil, iv, data, aad)
	if err != nil {
		return nil, refuseDecrypt
	}
	return plain, 0
}
