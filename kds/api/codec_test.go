package api

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestDecodeJSON(t *testing.T) {
	t.Parallel()
	good := `{"constraint":"c","name":"n","purpose":"age","version":{"generation":1,"counter":2}}`
	var r KeyRequest
	if err := DecodeJSON([]byte(good), MaxKeyBody, &r); err != nil || r.Version.Counter != 2 {
		t.Fatalf("%+v %v", r, err)
	}
	bad := map[string]string{
		"unknown key":      `{"constraint":"c","extra":1}`,
		"duplicate":        `{"name":"a","name":"b"}`,
		"case duplicate":   `{"name":"a","Name":"b"}`,
		"another case":     `{"Name":"b"}`,
		"folded letter":    `{"con\u017ftraint":"b"}`,
		"nested duplicate": `{"version":{"counter":1,"counter":2}}`,
		"trailing value":   good + `{}`,
		"trailing text":    good + `x`,
		"cut":              good[:len(good)-2],
		"empty":            ``,
		"wrong type":       `{"name":1}`,
		"deep":             strings.Repeat(`[`, 100) + strings.Repeat(`]`, 100),
	}
	for name, text := range bad {
		var r KeyRequest
		if err := DecodeJSON([]byte(text), MaxKeyBody, &r); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
	if err := DecodeJSON(make([]byte, 11), 10, &r); !errors.Is(err, ErrTooLarge) {
		t.Errorf("oversized: %v", err)
	}
}

// The encodings that are hashed and signed are frozen: a change here would
// orphan every cluster and receipt.
func TestFrozenEncodings(t *testing.T) {
	t.Parallel()
	raw, err := testManifest().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	id, err := ClusterID(raw, signer(1).Public())
	if err != nil {
		t.Fatal(err)
	}
	hash, err := PolicyHash("c")
	if err != nil {
		t.Fatal(err)
	}
	m := Membership{ClusterID: [32]byte{1}, Epoch: 2, Slot: "a", Incarnation: 3, ServerID: [32]byte{4}}
	member, err := m.message()
	if err != nil {
		t.Fatal(err)
	}
	head, err := checkpointMessage(ID{1}, 2, 300, ID{4})
	if err != nil {
		t.Fatal(err)
	}
	zeros := strings.Repeat("00", 31)
	admin, err := NewAdmin(ID{1}, 2, 3, &Ticket{Slot: "a", ServerID: ID{4}, PlatformID: ID{5}})
	if err != nil {
		t.Fatal(err)
	}
	recovery, err := testRecovery().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	final, err := (&FinalCheckpoint{ClusterID: ID{1}, Epoch: 2, ServerID: ID{3}, Applied: 4, Chain: ID{5}, StateSHA256: ID{6}, LogSize: 7, LogRoot: ID{8}}).message()
	if err != nil {
		t.Fatal(err)
	}
	got := []string{
		id.String(), hash.String(), fmt.Sprintf("%x", member), fmt.Sprintf("%x", head),
		fmt.Sprintf("%x", admin), fmt.Sprintf("%x", recovery), fmt.Sprintf("%x", final),
	}
	id32 := func(b string) string { return "5820" + b + zeros }
	want := []string{
		"b62030a52b84a4e3691ecc148d2d929e2e1c4751a37754d77eaa8678fd15cc9f", "19e4a3946149f875c2fcdafb5e383da0362176bac9e23cb8bbe16e2fcacf8ac5",
		// array(6), "claviger/member/v1", bytes(32), 2, "a", 3, bytes(32)
		"86" + "72636c6176696765722f6d656d6265722f7631" + "582001" + zeros + "02" + "6161" + "03" + "582004" + zeros,
		// array(5), "claviger/checkpoint/v1", bytes(32), 2, 300, bytes(32)
		"85" + "76636c6176696765722f636865636b706f696e742f7631" + "582001" + zeros + "02" + "19012c" + "582004" + zeros,
		// array(6), "claviger/admin/v1", bytes(32), 2, 3, "ticket", bytes(71): array(3), "a", bytes(32), bytes(32)
		"86" + "71636c6176696765722f61646d696e2f7631" + id32("01") + "02" + "03" + "667469636b6574" + "5847" + "83" + "6161" + id32("04") + id32("05"),
		// array(8), "claviger/recovery/v1", bytes(32), 2, 2, array(9), bytes(32), array(2) of array(3), ""
		"88" + "74636c6176696765722f7265636f766572792f7631" + id32("01") + "02" + "02" +
			"89" + "01" + id32("03") + "04" + "05" + id32("06") + id32("07") + "08" + id32("08") + "01" + id32("09") +
			"82" + "83" + "6161" + id32("03") + "6773746f70706564" + "83" + "6162" + id32("04") + "6964657374726f796564" + "60",
		// array(2), "claviger/final/v1", array(8)
		"82" + "71636c6176696765722f66696e616c2f7631" + "88" + id32("01") + "02" + id32("03") + "04" + id32("05") + id32("06") + "07" + id32("08"),
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%d: got %s, want %s", i, got[i], want[i])
		}
	}
}
