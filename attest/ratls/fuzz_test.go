package ratls

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzFrame feeds hostile bytes to every frame. What is accepted has one encoding and is within its bound, and refusals
// come out printable.
func FuzzFrame(f *testing.F) {
	frames := map[kind]any{
		kindClientHello:    clientHello{Protocol: "app/1", WantEvidence: true},
		kindServerHello:    serverHello{ClusterID: cluster, Epoch: 3, Want: wantRequired, Evidence: evidenceFrame{Quote: []byte{1, 2}}},
		kindClientEvidence: evidenceFrame{Quote: []byte{1}, Collateral: []byte{2}, Attachment: []byte{3}},
		kindAccept:         accept{},
		kindRefuse:         refuse{Code: "protocol", Message: "not offered"},
	}
	for k, v := range frames {
		var wire bytes.Buffer
		if err := writeFrame(&wire, k, v); err != nil {
			f.Fatal(err)
		}
		f.Add(wire.Bytes())
		f.Add(wire.Bytes()[:wire.Len()-1])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for k, v := range map[kind]any{
			kindClientHello: new(clientHello), kindServerHello: new(serverHello), kindClientEvidence: new(evidenceFrame), kindAccept: new(accept),
		} {
			r := bytes.NewReader(raw)
			err := readFrame(r, k, v)
			if refused, ok := errors.AsType[*RefusedError](err); ok {
				if clean(refused.Message, maxMessage) != refused.Message || cleanCode(refused.Code) != refused.Code {
					t.Fatalf("a refusal came through raw: %q", refused)
				}
			}
			if err != nil {
				continue
			}
			var again bytes.Buffer
			if err := writeFrame(&again, k, v); err != nil || !bytes.Equal(again.Bytes(), raw[:len(raw)-r.Len()]) {
				t.Fatalf("kind %d: accepted %x, encodes as %x (%v)", k, raw, again.Bytes(), err)
			}
		}
	})
}
