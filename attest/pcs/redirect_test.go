package pcs_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
)

// TestRedirects goes along with what stays in place, and not with what leaves it by scheme, host or port. The transport
// would answer anywhere, so only the rule stands between.
func TestRedirects(t *testing.T) {
	t.Parallel()
	const path = "/sgx/certification/v4/tcb?fmspc=518060000000"
	for target, ok := range map[string]bool{
		path: true, "https://pcs.test" + path: true,
		"http://pcs.test" + path: false, "https://pcs.test:444" + path: false, "https://evil.test" + path: false,
		"//evil.test" + path: false, "https://sub.pcs.test" + path: false, "https://pcs.test.evil.test" + path: false,
		"https://pcs.test@evil.test" + path: false,
	} {
		b := newBed(t, nil)
		hosts := map[string]int{}
		client := b.client(t, func(c *pcs.Config) {
			c.HTTPClient = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				hosts[r.URL.Scheme+"://"+r.URL.Host]++
				return memory{b.server}.RoundTrip(r)
			})}
		})
		b.server.Inject(pcsserver.TCBInfo, 1, pcsserver.Redirect(target))
		set, err := client.Fetch(t.Context(), request())
		if ok && err != nil {
			t.Errorf("%s: %v", target, err)
		}
		if !ok {
			wants(t, target, set, err, pcs.ErrRedirect)
		}
		if hosts["https://pcs.test"] == 0 || len(hosts) != 1 {
			t.Errorf("%s: asked %v", target, hosts)
		}
	}
}

// TestOtherCA asks for the list of one CA and gets that of the other, with its chain, all genuine.
func TestOtherCA(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	client := b.client(t, func(c *pcs.Config) {
		c.HTTPClient = &http.Client{Transport: memory{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "ca=platform", "ca=processor", 1)
			b.server.ServeHTTP(w, r)
		})}}
	})
	set, err := client.Fetch(t.Context(), request())
	wants(t, "other CA", set, err, pcs.ErrMismatch)
}
