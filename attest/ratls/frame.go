package ratls

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/fxamacker/cbor/v2"
)

// kind is the first byte of a frame. A frame is kind(1) ‖ length(4, big endian) ‖ canonical CBOR array.
type kind byte

const (
	kindClientHello    kind = 1
	kindServerHello    kind = 2
	kindClientEvidence kind = 3
	kindAccept         kind = 4
	kindRefuse         kind = 5
)

const frameHeader = 5

// bounds of frame bodies in bytes, by kind. 1 KiB is room for what travels beside the evidence.
var frameBounds = map[kind]uint32{
	kindClientHello:    1 << 10,
	kindServerHello:    MaxEvidence + 1<<10,
	kindClientEvidence: MaxEvidence + 1<<10,
	kindAccept:         16,
	kindRefuse:         4 << 10,
}

// want says what a server asks of the client.
type want uint8

const (
	wantNothing  want = 0
	wantOptional want = 1
	wantRequired want = 2
)

type evidenceFrame struct {
	_          struct{} `cbor:",toarray"`
	Quote      []byte
	Collateral []byte
	Attachment []byte
}

type clientHello struct {
	_            struct{} `cbor:",toarray"`
	Protocol     string
	WantEvidence bool
}

type serverHello struct {
	_         struct{} `cbor:",toarray"`
	ClusterID [32]byte
	Epoch     uint64
	Want      want
	Evidence  evidenceFrame
}

type accept struct {
	_ struct{} `cbor:",toarray"`
}

type refuse struct {
	_       struct{} `cbor:",toarray"`
	Code    string
	Message string
}

var (
	encMode = must(func() (cbor.EncMode, error) {
		o := cbor.CoreDetEncOptions()
		o.NilContainers = cbor.NilContainerAsEmpty // nil and empty are one meaning, hence one encoding
		return o.EncMode()
	}())
	decMode = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   4,
		MaxArrayElements:  16,
		MaxMapPairs:       16,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // constant options
	}
	return v
}

// encode is the one encoding of v.
func encode(v any) []byte { return must(encMode.Marshal(v)) }

// decode reads exactly one v from raw. Whatever does not encode back to the same bytes is refused: other widths, other
// lengths of fixed fields, null for empty.
func decode(raw []byte, v any) error {
	if err := decMode.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	if !bytes.Equal(encode(v), raw) {
		return fmt.Errorf("%w: not in canonical form", ErrFrame)
	}
	return nil
}

// writeFrame sends v in one Write.
func writeFrame(w io.Writer, k kind, v any) error {
	body := encode(v)
	if uint64(len(body)) > uint64(frameBounds[k]) {
		return fmt.Errorf("%w: %d bytes to send, at most %d", ErrFrameSize, len(body), frameBounds[k])
	}
	out := make([]byte, frameHeader, frameHeader+len(body))
	out[0] = byte(k)
	binary.BigEndian.PutUint32(out[1:], uint32(len(body)))
	_, err := w.Write(append(out, body...))
	return err
}

// readFrame reads a frame of kind k into v. A refusal in its place is returned as a *RefusedError.
func readFrame(r io.Reader, k kind, v any) error {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("ratls: waiting for the peer: %w", alerted(err))
	}
	got, n := kind(head[0]), binary.BigEndian.Uint32(head[1:])
	if got != k && got != kindRefuse {
		return fmt.Errorf("%w: kind %d where %d belongs", ErrFrame, got, k)
	}
	if n > frameBounds[got] {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrFrameSize, n, frameBounds[got])
	}
	// The buffer grows with what arrives: a peer pays for the memory that it makes us hold.
	var body bytes.Buffer
	if m, err := io.Copy(&body, io.LimitReader(r, int64(n))); err != nil {
		return fmt.Errorf("ratls: reading a frame: %w", err)
	} else if m != int64(n) {
		return fmt.Errorf("ratls: reading a frame: %w", io.ErrUnexpectedEOF)
	}
	if got == kindRefuse {
		var f refuse
		if err := decode(body.Bytes(), &f); err != nil {
			return err
		}
		return &RefusedError{Code: cleanCode(Code(f.Code)), Message: clean(f.Message, maxMessage)}
	}
	return decode(body.Bytes(), v)
}

// alerted marks a TLS alert of the peer, which in TLS 1.3 reaches a client only after its own handshake is done: the server
// refused its certificate. crypto/tls has no type for it but the operation's name.
func alerted(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return fmt.Errorf("%w: %w", ErrTLS, err)
	}
	return err
}

// frameOf bounds evidence before it is sent.
func frameOf(e Evidence) (evidenceFrame, error) {
	if e.size() > MaxEvidence {
		return evidenceFrame{}, fmt.Errorf("%w: own evidence has %d bytes, at most %d", ErrAttest, e.size(), MaxEvidence)
	}
	if len(e.Quote) == 0 && e.size() != 0 {
		return evidenceFrame{}, fmt.Errorf("%w: collateral or attachment without a quote", ErrAttest)
	}
	return evidenceFrame{Quote: e.Quote, Collateral: e.Collateral, Attachment: e.Attachment}, nil
}

// evidenceOf bounds evidence that was received.
func evidenceOf(f evidenceFrame) (Evidence, error) {
	e := Evidence{Quote: f.Quote, Collateral: f.Collateral, Attachment: f.Attachment}
	if e.size() > MaxEvidence {
		return Evidence{}, fmt.Errorf("%w: evidence of %d bytes, at most %d", ErrFrameSize, e.size(), MaxEvidence)
	}
	if len(e.Quote) == 0 && e.size() != 0 {
		return Evidence{}, fmt.Errorf("%w: collateral or attachment without a quote", ErrFrame)
	}
	return e, nil
}
