package pcs

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/claviger/claviger/attest"
)

// Update says which TCB recovery's data to ask for.
type Update string

// The updates, as the API spells them. The zero Update leaves the choice to the service, whose default is Standard.
const (
	Early    Update = "early"    // as soon as a TCB recovery is published
	Standard Update = "standard" // once platforms had time to be patched
)

// The PCK certification authorities, as the API spells them.
const (
	PlatformCA  = "platform"
	ProcessorCA = "processor"
)

// Request names one set of collateral. It is comparable: equal requests share a fetch and a place in the cache.
type Request struct {
	TEE        attest.TEE
	FMSPC      [6]byte // the platform family
	CA         string  // PlatformCA or ProcessorCA
	Update     Update
	Evaluation int // a TCB evaluation data number; excludes Update. 0 leaves the choice to Update
}

// RequestFor returns the request for the collateral that verifies a quote. The quote is parsed and NOT verified.
func RequestFor(quote []byte) (Request, error) {
	r, _, err := forQuote(quote)
	return r, err
}

// forQuote returns the request and the chain of the PCK CA in the quote, neither verified.
func forQuote(quote []byte) (Request, []byte, error) {
	const hint = "pass a raw SGX or TDX quote with its PCK certificate chain"
	q, err := attest.Parse(quote)
	if err != nil {
		return Request{}, nil, fail(&refused{ErrRequest, err}, hint)
	}
	p, err := attest.PlatformOf(q)
	if err != nil {
		return Request{}, nil, fail(&refused{ErrRequest, err}, hint)
	}
	issuer, err := attest.PCKIssuer(q)
	if err != nil {
		return Request{}, nil, fail(&refused{ErrRequest, err}, hint)
	}
	return Request{TEE: q.TEE(), FMSPC: p.FMSPC, CA: p.CA}, issuer, nil
}

// check refuses requests that name nothing.
func (r Request) check() error {
	bad := func(format string, args ...any) error {
		return fail(fmt.Errorf("%w: "+format, append([]any{ErrRequest}, args...)...), "take the request from a quote with RequestFor, or name TEE, FMSPC and CA")
	}
	switch {
	case r.TEE != attest.SGX && r.TEE != attest.TDX:
		return bad("TEE %.16q is neither sgx nor tdx", string(r.TEE))
	case r.CA != PlatformCA && r.CA != ProcessorCA:
		return bad("CA %.16q is neither platform nor processor", r.CA)
	case r.Update != "" && r.Update != Early && r.Update != Standard:
		return bad("update %.16q is neither early nor standard", string(r.Update))
	case r.Evaluation < 0 || r.Evaluation > 1<<31-1:
		return bad("evaluation number %d", r.Evaluation)
	case r.Evaluation != 0 && r.Update != "":
		return bad("an evaluation number and update=%s exclude each other", r.Update)
	}
	return nil
}

// name is the request in a form for file names and logs: no two valid requests share one.
func (r Request) name() string {
	name := string(r.TEE) + "-" + hex.EncodeToString(r.FMSPC[:]) + "-" + r.CA
	switch {
	case r.Evaluation != 0:
		name += "-e" + strconv.Itoa(r.Evaluation)
	case r.Update == Early:
		name += "-early"
	case r.Update == Standard:
		name += "-standard"
	}
	return name
}

// String names the request for people.
func (r Request) String() string { return r.name() }

// document is one of the four answers that make a set.
type document struct {
	part  string
	path  string // with query, under the base URL; "" for the root's list, which has a URL of its own
	limit int
}

// documents returns what to ask for, in the order in which it is asked for.
func (r Request) documents() (info, identity, pckCRL, rootCRL document) {
	choice := url.Values{}
	if r.Update != "" {
		choice.Set("update", string(r.Update))
	}
	if r.Evaluation != 0 {
		choice.Set("tcbEvaluationDataNumber", strconv.Itoa(r.Evaluation))
	}
	path := func(tee attest.TEE, name string, query url.Values) string {
		p := "/" + string(tee) + "/certification/v4/" + name
		if len(query) != 0 {
			p += "?" + query.Encode()
		}
		return p
	}
	family := url.Values{"fmspc": {strings.ToUpper(hex.EncodeToString(r.FMSPC[:]))}}
	for key, value := range choice {
		family[key] = value
	}
	info = document{"TCB info", path(r.TEE, "tcb", family), attest.MaxTCBInfo}
	identity = document{"QE identity", path(r.TEE, "qe/identity", choice), attest.MaxQEIdentity}
	// The list is one for both TEEs, and only the SGX half of the API has it.
	pckCRL = document{"PCK revocation list", path(attest.SGX, "pckcrl", url.Values{"ca": {r.CA}, "encoding": {"der"}}), maxHexCRL}
	rootCRL = document{"root revocation list", "", maxHexCRL}
	return info, identity, pckCRL, rootCRL
}
