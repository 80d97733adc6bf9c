package enclave

import (
	"errors"
	"strings"
	"testing"
)

func TestParseKind(t *testing.T) {
	for _, want := range []Kind{SGX, TDX, Sim} {
		got, err := ParseKind(string(want))
		if err != nil || got != want {
			t.Errorf("ParseKind(%q) = %q, %v", want, got, err)
		}
	}
	for _, bad := range []string{"", "SGX", " sgx", "sgx ", "sev", strings.Repeat("x", 1<<20)} {
		got, err := ParseKind(bad)
		if err == nil || got != "" {
			t.Errorf("ParseKind(%.10q) = %q, %v; want a refusal", bad, got, err)
		}
		if err != nil && len(err.Error()) > 200 {
			t.Errorf("error repeats %d bytes of the input", len(err.Error()))
		}
	}
}

func TestCheckLabel(t *testing.T) {
	for _, ok := range []string{"x", strings.Repeat("x", MaxLabel)} {
		if err := CheckLabel(ok); err != nil {
			t.Errorf("CheckLabel of %d bytes: %v", len(ok), err)
		}
	}
	for _, bad := range []string{"", strings.Repeat("x", MaxLabel+1)} {
		if err := CheckLabel(bad); !errors.Is(err, ErrLabel) {
			t.Errorf("CheckLabel of %d bytes: %v, want ErrLabel", len(bad), err)
		}
	}
}
