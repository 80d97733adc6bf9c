package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
)

// One nonce, one text.
func TestNonceText(t *testing.T) {
	t.Parallel()
	for _, size := range []int{8, 9, 10, 32, 64} {
		n := Nonce(bytes.Repeat([]byte{0xff}, size))
		text, err := n.MarshalText()
		if err != nil || len(text) < 12 || len(text) > 88 {
			t.Fatalf("%d bytes: %s %v", size, text, err)
		}
		var back Nonce
		if err := back.UnmarshalText(text); err != nil || !bytes.Equal(back, n) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for name, bad := range map[string]string{
		"empty": "", "seven bytes": "AAAAAAAAAA==", "65 bytes": string(bytes.Repeat([]byte("A"), 87)) + "=", "no padding": "AAAAAAAAAAA",
		"standard alphabet": "+/AAAAAAAAA=", "unused bits": "AAAAAAAAAAB=", "line end": "AAAAAAAA\nAAA=", "blank": " AAAAAAAAAAA=",
	} {
		n := Nonce{1}
		if err := n.UnmarshalText([]byte(bad)); !errors.Is(err, ErrMalformed) || len(n) != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	var req AttestRequest
	if err := DecodeJSON([]byte(`{"quote":"AA==","nonce":"AAECAwQFBgc="}`), MaxAttestBody, &req); err != nil || !bytes.Equal(req.Nonce, []byte{0, 1, 2, 3, 4, 5, 6, 7}) {
		t.Errorf("%v %v", req, err)
	}
	if raw, err := json.Marshal(AttestRequest{Quote: []byte{0}}); err != nil || string(raw) != `{"quote":"AA=="}` {
		t.Errorf("%s %v", raw, err)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	one, err := PolicyURN("C:aa SEC:STALE")
	two, err2 := PolicyURN("C:aa SEC:SECURE")
	if err != nil || err2 != nil || one == two || len(one) != len("urn:claviger:policy:")+64 {
		t.Errorf("%s %s", one, two)
	}
	if got := ClusterURN(ID{0xab}); got[:24] != "urn:claviger:cluster:ab0" || len(got) != len("urn:claviger:cluster:")+64 {
		t.Error(got)
	}
}
