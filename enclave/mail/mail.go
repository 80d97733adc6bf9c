package mail

import (
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/claviger/claviger/enclave/secret"
)

// Errors of this package; match them with errors.Is.
var (
	// ErrKey: a public or private key is not a valid X25519 key of 32 bytes.
	ErrKey = errors.New("mail: not an X25519 key")
	// ErrFormat: the bytes are not a message of a version known here.
	ErrFormat = errors.New("mail: not a sealed message of this version")
	// ErrOpen: the message does not open with this key, info and aad. It gives no
	// further reason, as that would tell an attacker which of them was right.
	ErrOpen = errors.New("mail: the message does not open")
	// ErrTooLarge: the plaintext or the sealed message exceeds its limit.
	ErrTooLarge = errors.New("mail: message too large")
)

const (
	// MaxPlaintext is the largest plaintext in bytes.
	MaxPlaintext = maxBucket - prefixSize
	// MaxSealed is the largest sealed message in bytes.
	MaxSealed = 1 + encSize + maxBucket + tagSize

	// version1 also names the suite below; another suite gets another byte.
	version1 = 1

	keySize    = 32
	encSize    = 32
	tagSize    = 16
	prefixSize = keySize + 4 // reply key (zero in a reply) and length
	minBucket  = 1 << 10
	maxBucket  = 4 << 20

	requestLabel  = "claviger/mail/request/v1"
	replyLabel    = "claviger/mail/reply/v1"
	exportContext = "claviger/mail/reply-secret/v1"
	exportSize    = 32
)

func kem() hpke.KEM   { return hpke.DHKEM(ecdh.X25519()) }
func kdf() hpke.KDF   { return hpke.HKDFSHA256() }
func aead() hpke.AEAD { return hpke.ChaCha20Poly1305() }

// redacted makes the types that hold secrets refuse to print themselves.
type redacted struct{}

// Format implements fmt.Formatter for every verb.
func (redacted) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "mail(redacted)") }

// Recipient is a public key to seal requests to.
type Recipient struct{ key hpke.PublicKey }

// ParseRecipient decodes a raw X25519 public key of 32 bytes. That it is the
// wanted enclave's is the caller's to know, from the key service's signed reply.
func ParseRecipient(pub []byte) (*Recipient, error) {
	key, err := parsePublic(pub)
	if err != nil {
		return nil, err
	}
	return &Recipient{key}, nil
}

// Bytes returns the raw public key.
func (r *Recipient) Bytes() []byte { return r.key.Bytes() }

func parsePublic(pub []byte) (hpke.PublicKey, error) {
	if len(pub) != keySize {
		return nil, ErrKey
	}
	key, err := kem().NewPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return key, nil
}

// Identity opens requests. It refuses to print itself.
type Identity struct {
	redacted
	key hpke.PrivateKey
}

// NewIdentity takes a raw X25519 private key of 32 bytes, as the key service
// gives for the purpose x25519. The key may be destroyed afterwards.
func NewIdentity(private secret.Key) (*Identity, error) {
	if private.Len() != keySize {
		return nil, ErrKey
	}
	raw := private.Reveal()
	defer clear(raw)
	key, err := kem().NewPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &Identity{key: key}, nil
}

// Recipient returns the public half.
func (i *Identity) Recipient() *Recipient { return &Recipient{i.key.PublicKey()} }

// ReplyOpener opens the reply to one request. It refuses to print itself.
type ReplyOpener struct {
	redacted
	key  hpke.PrivateKey
	info []byte
}

// ReplySealer seals the reply to one opened request. It refuses to print itself.
type ReplySealer struct {
	redacted
	to   hpke.PublicKey
	info []byte
}

// fields frames values under a versioned label, each preceded by its length.
func fields(label string, values ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(label)))
	b = append(b, label...)
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return b
}

// SealRequest seals plaintext, up to MaxPlaintext bytes, to a recipient. info and
// aad may be nil and must be known to the recipient. The ReplyOpener is for the
// reply to this request only.
func SealRequest(to *Recipient, info, aad, plaintext []byte) (sealed []byte, reply *ReplyOpener, err error) {
	if to == nil || to.key == nil {
		return nil, nil, ErrKey
	}
	replyKey, err := kem().GenerateKey()
	if err != nil {
		return nil, nil, fmt.Errorf("mail: making a reply key: %w", err)
	}
	padded, err := pad(replyKey.PublicKey().Bytes(), plaintext)
	if err != nil {
		return nil, nil, err
	}
	defer clear(padded)
	sealed, sender, err := seal(to.key, fields(requestLabel, info), aad, padded)
	if err != nil {
		return nil, nil, err
	}
	exported, err := sender.Export(exportContext, exportSize)
	if err != nil {
		return nil, nil, fmt.Errorf("mail: exporting the reply secret: %w", err)
	}
	return sealed, &ReplyOpener{key: replyKey, info: fields(replyLabel, exported, info)}, nil
}

// OpenRequest opens a request sealed with the same info and aad.
func (i *Identity) OpenRequest(info, aad, sealed []byte) (plaintext []byte, reply *ReplySealer, err error) {
	if i == nil || i.key == nil {
		return nil, nil, ErrKey
	}
	padded, receiver, err := open(i.key, fields(requestLabel, info), aad, sealed)
	if err != nil {
		return nil, nil, err
	}
	rawKey, plaintext, err := unpad(padded)
	if err != nil {
		return nil, nil, err
	}
	to, err := parsePublic(rawKey)
	if err != nil {
		return nil, nil, ErrFormat
	}
	exported, err := receiver.Export(exportContext, exportSize)
	if err != nil {
		return nil, nil, fmt.Errorf("mail: exporting the reply secret: %w", err)
	}
	return plaintext, &ReplySealer{to: to, info: fields(replyLabel, exported, info)}, nil
}

// Seal seals the reply, up to MaxPlaintext bytes. aad may be nil. A request's
// reply key of low order makes it fail; nothing is sent then.
func (r *ReplySealer) Seal(aad, plaintext []byte) ([]byte, error) {
	if r == nil || r.to == nil {
		return nil, ErrKey
	}
	padded, err := pad(make([]byte, keySize), plaintext)
	if err != nil {
		return nil, err
	}
	defer clear(padded)
	sealed, _, err := seal(r.to, r.info, aad, padded)
	return sealed, err
}

// Open opens the reply to the opener's request, sealed with the same aad.
func (r *ReplyOpener) Open(aad, sealed []byte) ([]byte, error) {
	if r == nil || r.key == nil {
		return nil, ErrKey
	}
	padded, _, err := open(r.key, r.info, aad, sealed)
	if err != nil {
		return nil, err
	}
	key, plaintext, err := unpad(padded)
	if err != nil {
		return nil, err
	}
	if [keySize]byte(key) != [keySize]byte{} {
		return nil, ErrFormat
	}
	return plaintext, nil
}

// seal returns version ‖ encapsulated key ‖ ciphertext.
func seal(to hpke.PublicKey, info, aad, padded []byte) ([]byte, *hpke.Sender, error) {
	enc, sender, err := hpke.NewSender(to, kdf(), aead(), info)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	ct, err := sender.Seal(aad, padded)
	if err != nil {
		return nil, nil, fmt.Errorf("mail: sealing: %w", err)
	}
	sealed := make([]byte, 0, 1+len(enc)+len(ct))
	sealed = append(append(append(sealed, version1), enc...), ct...)
	return sealed, sender, nil
}

func open(key hpke.PrivateKey, info, aad, sealed []byte) ([]byte, *hpke.Recipient, error) {
	if len(sealed) > MaxSealed {
		return nil, nil, ErrTooLarge
	}
	if len(sealed) < 1+encSize+minBucket+tagSize || sealed[0] != version1 {
		return nil, nil, ErrFormat
	}
	enc, ct := sealed[1:1+encSize], sealed[1+encSize:]
	receiver, err := hpke.NewRecipient(enc, key, kdf(), aead(), info)
	if err != nil {
		return nil, nil, ErrOpen
	}
	padded, err := receiver.Open(aad, ct)
	if err != nil {
		return nil, nil, ErrOpen
	}
	return padded, receiver, nil
}

// bucket returns the padded size for n bytes: the next power of two, at least
// minBucket.
func bucket(n int) int {
	b := minBucket
	for b < n {
		b *= 2
	}
	return b
}

// pad lays out key ‖ length ‖ plaintext ‖ zeros, one bucket in all.
func pad(key, plaintext []byte) ([]byte, error) {
	if len(plaintext) > MaxPlaintext {
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrTooLarge, len(plaintext), MaxPlaintext)
	}
	b := make([]byte, bucket(prefixSize+len(plaintext)))
	copy(b, key)
	binary.BigEndian.PutUint32(b[keySize:], uint32(len(plaintext)))
	copy(b[prefixSize:], plaintext)
	return b, nil
}

// unpad is the strict inverse of pad: one plaintext has one padded form.
func unpad(b []byte) (key, plaintext []byte, err error) {
	if len(b) < prefixSize {
		return nil, nil, ErrFormat
	}
	n := binary.BigEndian.Uint32(b[keySize:])
	if n > MaxPlaintext || bucket(prefixSize+int(n)) != len(b) {
		return nil, nil, ErrFormat
	}
	end := prefixSize + int(n)
	for _, c := range b[end:] {
		if c != 0 {
			return nil, nil, ErrFormat
		}
	}
	return b[:keySize:keySize], b[prefixSize:end:end], nil
}
