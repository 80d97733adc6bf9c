package ratls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
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

// FuzzKeyBoundCertificate changes a genuine certificate. Whatever of it is still accepted is about the same key, and the
// report in it is the same: no other bytes lead to a proof.
func FuzzKeyBoundCertificate(f *testing.F) {
	b, err := sharedBed()
	if err != nil {
		f.Fatal(err)
	}
	// Fuzzing runs in several processes: all must know the same genuine key.
	key := must(ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{7}, 32)))
	genuine, err := newKeyBound(f.Context(), &KeyBoundConfig{Key: key, Attest: b.keyQuote("node")}, RoleServer)
	if err != nil {
		f.Fatal(err)
	}
	der := genuine.leaf.cert.Certificate[0]
	quote := must(ParseOEReport(must(reportIn(must(x509.ParseCertificate(der))))))
	f.Add(der)
	f.Add(must(newLeaf(nil)).cert.Certificate[0])
	f.Add(must(newLeaf(nil, oeExtension(AppendOEReport(nil, quote)))).cert.Certificate[0])
	f.Add(must(newLeaf(nil, oeExtension(nil))).cert.Certificate[0])
	client := must(newKeyBound(f.Context(), &KeyBoundConfig{Verify: b.keyVerify}, RoleClient))
	f.Fuzz(func(t *testing.T, raw []byte) {
		cert, err := x509.ParseCertificate(raw)
		if err != nil {
			return
		}
		peer, err := client.verify(t.Context(), tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: []*x509.Certificate{cert}})
		if err != nil {
			if peer.Verified != nil {
				t.Fatal("a proof beside an error")
			}
			return
		}
		// A quote's signatures are malleable: what they sign, header and report, is not.
		if peer.Key != genuine.leaf.hash || !bytes.Equal(peer.Quote[:432], quote[:432]) {
			t.Fatalf("accepted: %x", raw)
		}
	})
}
