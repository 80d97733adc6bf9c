package pcsserver

import (
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
)

// ErrConfig says that a Server was configured without a PKI.
var ErrConfig = errors.New("pcsserver: bad configuration")

// Document is one kind of answer, to inject faults into.
type Document string

// The documents that make a set of collateral.
const (
	TCBInfo    Document = "tcb"
	QEIdentity Document = "qe/identity"
	PCKCRL     Document = "pckcrl"
	RootCRL    Document = "rootcacrl"
)

// Names of headers, as Intel spells them.
const (
	TCBInfoChain    = "TCB-Info-Issuer-Chain"
	TCBInfoChainOld = "SGX-TCB-Info-Issuer-Chain"
	QEIdentityChain = "SGX-Enclave-Identity-Issuer-Chain"
	PCKCRLChain     = "SGX-PCK-CRL-Issuer-Chain"
	keyHeader       = "Ocp-Apim-Subscription-Key"
)

// Config describes a server.
type Config struct {
	// PKI is served. Required.
	PKI *simpki.PKI
	// Clock tells the time of answers; nil means time.Now.
	Clock func() time.Time
	// PCCS makes the server answer as Intel's caching service does.
	PCCS bool
	// APIKey, when set, must come with every request but those for the root's revocation list, which lies elsewhere.
	APIKey string
	// FMSPCs are the platform families that are known; empty means all.
	FMSPCs [][6]byte
}

// Request is a request that a Server received.
type Request struct {
	Document Document
	Path     string
	Query    url.Values
	Key      bool // the right API key came with it
}

// maxLog bounds the log of requests.
const maxLog = 10_000

// Server is an http.Handler. It is safe for concurrent use.
type Server struct {
	config Config

	mu     sync.Mutex
	faults map[Document]*injection
	log    []Request
}

type injection struct {
	times int // negative: for ever
	fault Fault
}

// New returns a server, or ErrConfig without a PKI.
func New(config Config) (*Server, error) {
	if config.PKI == nil {
		return nil, fmt.Errorf("%w: set Config.PKI", ErrConfig)
	}
	if config.Clock == nil {
		config.Clock = time.Now
	}
	return &Server{config: config, faults: map[Document]*injection{}}, nil
}

// Inject makes the next answers with a document faulty: times of them, all if times is negative. It replaces what was
// injected into the document before; times 0 heals it.
func (s *Server) Inject(d Document, times int, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[d] = &injection{times, f}
}

// Requests returns the requests received so far, in order.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.log...)
}

// fault notes a request and takes the fault for its answer.
func (s *Server) fault(r Request) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.log) < maxLog {
		s.log = append(s.log, r)
	}
	in := s.faults[r.Document]
	if in == nil || in.times == 0 {
		return Fault{}
	}
	if in.times > 0 {
		in.times--
	}
	return in.fault
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tee, document, known := route(r.URL.Path)
	switch {
	case !known, document == RootCRL && s.config.PCCS != (r.URL.Path != rootPath):
		http.Error(w, "no such resource", http.StatusNotFound)
		return
	case r.Method != http.MethodGet:
		http.Error(w, "GET only", http.StatusMethodNotAllowed)
		return
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		http.Error(w, "malformed query", http.StatusBadRequest)
		return
	}
	seen := Request{document, r.URL.Path, query, s.config.APIKey != "" && r.Header.Get(keyHeader) == s.config.APIKey}
	fault := s.fault(seen)
	answer := &Answer{Status: http.StatusUnauthorized, Header: http.Header{}}
	if s.config.APIKey == "" || seen.Key || document == RootCRL {
		at := s.config.Clock()
		if !fault.at.IsZero() {
			at = fault.at
		}
		answer = s.answer(tee, document, query, at)
	}
	answer.Header.Set("Request-ID", "simulated")
	if fault.change != nil {
		fault.change(answer)
	}
	answer.write(w, r)
}

const rootPath = "/IntelSGXRootCA.der"

// route tells what a path asks for.
func route(path string) (attest.TEE, Document, bool) {
	if path == rootPath {
		return attest.SGX, RootCRL, true
	}
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		rest, ok := strings.CutPrefix(path, "/"+string(tee)+"/certification/v4/")
		switch d := Document(rest); {
		case !ok:
		case d == TCBInfo, d == QEIdentity, tee == attest.SGX && (d == PCKCRL || d == RootCRL):
			return tee, d, true
		}
	}
	return "", "", false
}

// answer makes the faultless answer.
func (s *Server) answer(tee attest.TEE, document Document, query url.Values, at time.Time) *Answer {
	fail := func(status int) *Answer { return &Answer{Status: status, Header: http.Header{}} }
	fmspc, ca, ok := s.subject(document, query)
	if !ok {
		return fail(http.StatusBadRequest)
	}
	if !s.knows(document, fmspc) {
		return fail(http.StatusNotFound)
	}
	c, err := s.config.PKI.CollateralFor(tee, fmspc, ca, at)
	if err != nil {
		return fail(http.StatusInternalServerError)
	}
	switch document {
	case TCBInfo:
		name := TCBInfoChain
		if s.config.PCCS {
			name = TCBInfoChainOld
		}
		return signed(c.TCBInfo, name, c.TCBSigningChain, query)
	case QEIdentity:
		return signed(c.QEIdentity, QEIdentityChain, c.TCBSigningChain, query)
	case PCKCRL:
		chain, err := s.config.PKI.IssuerChain(ca)
		if err != nil {
			return fail(http.StatusInternalServerError)
		}
		a := s.list(c.PCKCRL, query.Get("encoding"))
		a.Header.Set(PCKCRLChain, EncodeChain(chain))
		return a
	default:
		if s.config.PCCS {
			return s.list(c.RootCRL, "")
		}
		return s.list(c.RootCRL, "der")
	}
}

// subject checks the parameters of a request and returns the family and CA that it is about, or any.
func (s *Server) subject(document Document, query url.Values) (fmspc [6]byte, ca simpki.CA, ok bool) {
	ca, ok = simpki.PlatformCA, true
	for _, values := range query {
		ok = ok && len(values) == 1
	}
	update, number := query.Get("update"), query.Get("tcbEvaluationDataNumber")
	switch document {
	case TCBInfo:
		raw, err := hex.DecodeString(query.Get("fmspc"))
		if ok = ok && err == nil && len(raw) == len(fmspc); ok {
			copy(fmspc[:], raw)
		}
	case PCKCRL:
		ca = simpki.CA(query.Get("ca"))
		encoding := query.Get("encoding")
		ok = ok && (ca == simpki.PlatformCA || ca == simpki.ProcessorCA) && (encoding == "" || encoding == "der" || encoding == "pem")
	}
	ok = ok && (update == "" || update == "early" || update == "standard") && (update == "" || number == "")
	return fmspc, ca, ok
}

func (s *Server) knows(document Document, fmspc [6]byte) bool {
	if document != TCBInfo || len(s.config.FMSPCs) == 0 {
		return true
	}
	for _, f := range s.config.FMSPCs {
		if f == fmspc {
			return true
		}
	}
	return false
}

// signed answers with a signed document, if it is of the evaluation number asked for: 404 for a future one, 410 for one
// that is no longer published.
func signed(body []byte, name string, chain []byte, query url.Values) *Answer {
	a := &Answer{Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: body}
	a.Header.Set(name, EncodeChain(chain))
	asked := query.Get("tcbEvaluationDataNumber")
	if asked == "" {
		return a
	}
	want, err := strconv.Atoi(asked)
	have, err2 := evaluationNumber(body)
	switch {
	case err != nil || err2 != nil:
		return &Answer{Status: http.StatusBadRequest, Header: http.Header{}}
	case want > have:
		return &Answer{Status: http.StatusNotFound, Header: http.Header{}}
	case want < have:
		return &Answer{Status: http.StatusGone, Header: http.Header{}}
	}
	return a
}

func evaluationNumber(envelope []byte) (int, error) {
	type body struct {
		Number int `json:"tcbEvaluationDataNumber"`
	}
	var e struct {
		TCBInfo  *body `json:"tcbInfo"`
		Identity *body `json:"enclaveIdentity"`
	}
	if err := json.Unmarshal(envelope, &e); err != nil {
		return 0, err
	}
	if e.TCBInfo != nil {
		return e.TCBInfo.Number, nil
	}
	return e.Identity.Number, nil
}

// list answers with a revocation list. Without an encoding, PCS sends PEM and PCCS hex.
func (s *Server) list(der []byte, encoding string) *Answer {
	kind, body := "application/pkix-crl", der
	switch {
	case encoding == "der":
	case s.config.PCCS && encoding == "":
		body = []byte(hex.EncodeToString(der))
	default:
		kind, body = "application/x-pem-file", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	}
	return &Answer{Status: http.StatusOK, Header: http.Header{"Content-Type": {kind}}, Body: body}
}

// EncodeChain percent-encodes a PEM chain for a header, as Intel does.
func EncodeChain(chain []byte) string {
	return strings.ReplaceAll(url.QueryEscape(string(chain)), "+", "%20")
}
