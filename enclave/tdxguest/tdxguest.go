package tdxguest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tdx-guest/client"

	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/secret"
)

// ErrQuote is returned when what the kernel calls a quote is not a TDX quote over
// the data that was asked for.
var ErrQuote = errors.New("tdxguest: malformed quote from the kernel")

// TEE is the trust domain that this process runs in. Only Open makes one that
// works. It is safe for concurrent use.
type TEE struct{ provider client.QuoteProvider }

var _ enclave.TEE = (*TEE)(nil)

// Open returns the TEE of this machine. Outside a TD, and in one whose kernel has
// no configfs-tsm, it fails with enclave.ErrUnsupported.
func Open() (*TEE, error) {
	provider, err := client.GetQuoteProvider()
	if err != nil {
		return nil, unsupported(err)
	}
	return open(provider)
}

// open returns the TEE of a provider that says it is there.
func open(provider client.QuoteProvider) (*TEE, error) {
	if err := provider.IsSupported(); err != nil {
		return nil, unsupported(err)
	}
	return &TEE{provider}, nil
}

// unsupported says what to do about a machine that gives no quotes.
func unsupported(err error) error {
	return fmt.Errorf("tdxguest: %w: run in an Intel TDX guest with Linux 6.7 or later, the tdx_guest module, "+
		"and configfs mounted on /sys/kernel/config: %w", enclave.ErrUnsupported, err)
}

// Kind returns enclave.TDX.
func (*TEE) Kind() enclave.Kind { return enclave.TDX }

// Quote returns a TDX quote of version 4 or 5 over reportData. The kernel cannot
// be interrupted: ctx is looked at before the call only.
func (t *TEE) Quote(ctx context.Context, reportData [enclave.ReportDataSize]byte) ([]byte, error) {
	if t == nil || t.provider == nil {
		return nil, fmt.Errorf("tdxguest: %w: use Open", enclave.ErrUnsupported)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	raw, err := t.provider.GetRawQuote(reportData)
	if err != nil {
		return nil, fmt.Errorf("tdxguest: quote (is the host's quote generation service up?): %w", err)
	}
	return check(raw, reportData)
}

// SealingKey fails with enclave.ErrUnsupported: TDX has no sealing key.
func (*TEE) SealingKey(_ context.Context, label string) (secret.Key, error) {
	if err := enclave.CheckLabel(label); err != nil {
		return secret.Key{}, err
	}
	return secret.Key{}, fmt.Errorf("tdxguest: %w: TDX has no sealing key; get a key from the KDS", enclave.ErrUnsupported)
}

// Layout of TDX quotes (Intel TDX DCAP Quoting Library API, appendix A.3), in bytes.
const (
	maxQuote       = 64 << 10
	headerSize     = 48
	descriptorSize = 6 // version 5: body type and size
	body10Size     = 584
	body15Size     = 648
	reportDataAt   = 520 // in every body
	teeTypeTDX     = 0x81
)

// check bounds raw and returns the quote in it, which must bind reportData. The
// quote generation service may answer in a fixed buffer: zero bytes behind the
// quote are cut off, anything else there is refused.
func check(raw []byte, reportData [enclave.ReportDataSize]byte) ([]byte, error) {
	if len(raw) < headerSize+descriptorSize || len(raw) > maxQuote {
		return nil, fmt.Errorf("%w: %d bytes", ErrQuote, len(raw))
	}
	if tee := binary.LittleEndian.Uint32(raw[4:]); tee != teeTypeTDX {
		return nil, fmt.Errorf("%w: TEE type %#x, want %#x", ErrQuote, tee, teeTypeTDX)
	}
	body, size := headerSize, body10Size
	switch version := binary.LittleEndian.Uint16(raw); version {
	case 4:
	case 5:
		body += descriptorSize
		size = int(min(binary.LittleEndian.Uint32(raw[headerSize+2:]), maxQuote))
		if size != body10Size && size != body15Size {
			return nil, fmt.Errorf("%w: version 5 with a body of %d bytes", ErrQuote, size)
		}
	default:
		return nil, fmt.Errorf("%w: version %d, want 4 or 5", ErrQuote, version)
	}
	end := body + size + 4
	if len(raw) < end {
		return nil, fmt.Errorf("%w: truncated at %d bytes", ErrQuote, len(raw))
	}
	signature := binary.LittleEndian.Uint32(raw[end-4:])
	if uint64(signature) > uint64(len(raw)-end) {
		return nil, fmt.Errorf("%w: %d bytes of signature data, %d are there", ErrQuote, signature, len(raw)-end)
	}
	end += int(signature)
	if rest := raw[end:]; !bytes.Equal(rest, make([]byte, len(rest))) {
		return nil, fmt.Errorf("%w: %d bytes that are not padding follow it", ErrQuote, len(rest))
	}
	if !bytes.Equal(raw[body+reportDataAt:][:len(reportData)], reportData[:]) {
		return nil, fmt.Errorf("%w: it binds other report data than was asked for", ErrQuote)
	}
	return bytes.Clone(raw[:end]), nil
}
