package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/goccy/go-yaml"
)

// material is the secret that no output may contain in any encoding.
var material = []byte("TOP-SECRET-material-0123456789-!")

// leaks reports how text contains the secret, "" if it does not.
func leaks(text string) string {
	decimal := strings.Trim(fmt.Sprint(material[:4]), "[]")
	for name, form := range map[string]string{
		"raw": string(material[:8]), "hex": hex.EncodeToString(material[:8]), "decimal": decimal,
		"base64": base64.StdEncoding.EncodeToString(material)[:10],
	} {
		if strings.Contains(strings.ToLower(text), strings.ToLower(form)) {
			return name
		}
	}
	if strings.Contains(text, fmt.Sprintf("%#v", material[:4])[7:20]) {
		return "go syntax"
	}
	return ""
}

func TestLeaksDetects(t *testing.T) {
	for _, text := range []string{
		string(material), fmt.Sprint(material), fmt.Sprintf("%x", material), fmt.Sprintf("%X", material),
		fmt.Sprintf("%#v", material), base64.StdEncoding.EncodeToString(material),
	} {
		if leaks(text) == "" {
			t.Errorf("the detector misses %.20q", text)
		}
	}
}

type holder struct {
	Exported   Key
	unexported Key
	Pointer    *Key
	List       []Key
	Map        map[string]Key
	Any        any
}

func shapes(t *testing.T) map[string]any {
	k := mustNew(t, material)
	return map[string]any{
		"key": k, "pointer": &k, "slice": []Key{k}, "map": map[string]Key{"k": k}, "any": []any{k},
		"struct":  holder{Exported: k, unexported: k, Pointer: &k, List: []Key{k}, Map: map[string]Key{"k": k}, Any: k},
		"private": struct{ k Key }{k}, "embedded": struct{ Key }{k},
	}
}

func TestEveryVerbRefuses(t *testing.T) {
	ran := 0
	for name, v := range shapes(t) {
		for verb := 'A'; verb <= 'z'; verb++ {
			for _, flag := range []string{"", "#", "+", "-", " ", "0", "#+", "# ", "40", ".5"} {
				format := "%" + flag + string(verb)
				if how := leaks(fmt.Sprintf(format, v)); how != "" {
					t.Errorf("%s printed with %q leaks (%s)", name, format, how)
				}
				ran++
			}
		}
	}
	if ran < 4000 {
		t.Fatalf("only %d combinations ran", ran)
	}
}

func TestFormatText(t *testing.T) {
	k := mustNew(t, material)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%z"} {
		if got := fmt.Sprintf(format, k); got != redacted {
			t.Errorf("%s prints %q", format, got)
		}
	}
	if k.String() != redacted || k.GoString() != redacted || fmt.Sprint(k) != redacted {
		t.Error("String or GoString prints something else")
	}
	if got := fmt.Errorf("wrapped: %v", k).Error(); leaks(got) != "" {
		t.Errorf("in an error: %q", got)
	}
}

func TestEveryMarshallerRefuses(t *testing.T) {
	k := mustNew(t, material)
	encoders := map[string]func(v any) ([]byte, error){
		"json": json.Marshal,
		"json indent": func(v any) ([]byte, error) {
			return json.MarshalIndent(v, "", " ")
		},
		"yaml": func(v any) ([]byte, error) { return yaml.Marshal(v) },
		"cbor": cbor.Marshal,
		"gob": func(v any) ([]byte, error) {
			var b bytes.Buffer
			err := gob.NewEncoder(&b).Encode(v)
			return b.Bytes(), err
		},
		"xml": xml.Marshal,
	}
	for name, encode := range encoders {
		for shape, v := range map[string]any{
			"key": k, "pointer": &k, "field": struct{ K Key }{k}, "pointer field": struct{ K *Key }{&k},
			"slice": []Key{k}, "zero": Key{},
		} {
			out, err := encode(v)
			if err == nil {
				t.Errorf("%s encodes a %s", name, shape)
			}
			if how := leaks(string(out)); how != "" {
				t.Errorf("%s of a %s leaks (%s)", name, shape, how)
			}
			if how := leaks(fmt.Sprint(err)); how != "" {
				t.Errorf("the error of %s of a %s leaks (%s)", name, shape, how)
			}
		}
	}
}

func TestMarshalMethodsRefuse(t *testing.T) {
	k := mustNew(t, material)
	ran := 0
	for name, f := range map[string]func() ([]byte, error){
		"text": k.MarshalText, "binary": k.MarshalBinary, "json": k.MarshalJSON, "cbor": k.MarshalCBOR,
		"gob": k.GobEncode, "yaml": func() ([]byte, error) { _, err := k.MarshalYAML(); return nil, err },
		"append text":   func() ([]byte, error) { return k.AppendText(nil) },
		"append binary": func() ([]byte, error) { return k.AppendBinary(nil) },
	} {
		if out, err := f(); !errors.Is(err, ErrMarshal) || len(out) != 0 {
			t.Errorf("%s: %d bytes, %v; want ErrMarshal", name, len(out), err)
		}
		ran++
	}
	if ran == 0 {
		t.Fatal("nothing ran")
	}
}

func TestLogRefuses(t *testing.T) {
	for name, v := range shapes(t) {
		var b bytes.Buffer
		for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
			slog.New(h).With("with", v).WithGroup("g").Info("message", "value", v, slog.Any("any", v))
		}
		if b.Len() == 0 {
			t.Fatal("nothing was logged")
		}
		if how := leaks(b.String()); how != "" {
			t.Errorf("logging a %s leaks (%s)", name, how)
		}
	}
}
