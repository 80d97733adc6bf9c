package functions

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/mux"

	"github.com/claviger/claviger/enclave/mail"
)

// Handler serves the protocol over plain HTTP: the machine's host is the
// adversary, so a TLS session that ended in front of the enclave would protect
// nothing that sealing does not.
//
//	GET  /v1/runtime                          constraint, public key, session
//	POST /v1/projects/{project}/deployments   a sealed deployment
//	POST /v1/functions/{project}/{name}       a sealed call
func (h *Host) Handler() http.Handler {
	r := mux.NewRouter()
	r.HandleFunc("/v1/runtime", h.serveRuntime).Methods(http.MethodGet)
	r.HandleFunc("/v1/projects/{project}/deployments", h.serveDeploy).Methods(http.MethodPost)
	r.HandleFunc("/v1/functions/{project}/{name}", h.serveCall).Methods(http.MethodPost)
	r.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, http.StatusNotFound, CodeNotFound, "there is no such resource")
	})
	r.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, http.StatusMethodNotAllowed, CodeMethod, "the resource has no such method")
	})
	return r
}

func (h *Host) serveRuntime(w http.ResponseWriter, _ *http.Request) {
	session := h.window.now()
	writeJSON(w, http.StatusOK, runtimeDocument{
		Constraint: h.cfg.Runtime,
		PublicKey:  base64.StdEncoding.EncodeToString(h.PublicKey()),
		Session:    base64.StdEncoding.EncodeToString(session[:]),
	})
}

func (h *Host) serveCall(w http.ResponseWriter, r *http.Request) {
	var doc callDocument
	name := mux.Vars(r)["name"]
	h.serve(w, r, map[string]*string{"code_hash": &doc.CodeHash, "request": &doc.Request},
		func(ctx context.Context, id ProjectID, sealed []byte) ([]byte, error) {
			code, err := ParseCodeHash(doc.CodeHash)
			if err != nil {
				return nil, err
			}
			return h.Call(ctx, id, name, code, sealed)
		})
}

func (h *Host) serveDeploy(w http.ResponseWriter, r *http.Request) {
	var doc deployDocument
	h.serve(w, r, map[string]*string{"request": &doc.Request}, h.Deploy)
}

// callTimeout bounds a call with all that it waits for: a free instance, the
// project's writer, the key service.
const callTimeout = time.Minute

// serve reads a request, takes a slot, runs the request and writes the reply. The
// members, among them "request", are those of the body. The body is whole before a
// slot is taken, and the slot is given back before a reply that fits the budget is
// written, so peers that send or receive slowly keep nobody out.
func (h *Host) serve(w http.ResponseWriter, r *http.Request, members map[string]*string, run func(context.Context, ProjectID, []byte) ([]byte, error)) {
	id, err := ParseProjectID(mux.Vars(r)["project"])
	if err != nil {
		h.writeError(w, err)
		return
	}
	body, free, err := h.readBody(w, r)
	defer free()
	if err != nil {
		h.writeError(w, err)
		return
	}
	leave, err := h.enter()
	if err != nil {
		h.writeError(w, err)
		return
	}
	defer leave()
	if err := parseDocument(body, members); err != nil {
		h.writeError(w, err)
		return
	}
	sealed, err := parseBase64("request", *members["request"])
	if err != nil {
		h.writeError(w, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	reply, err := run(ctx, id, sealed)
	if err != nil {
		h.writeError(w, err)
		return
	}
	h.writeReply(w, reply, leave)
}

// enter takes one of the slots for calls in flight, so that memory for functions
// is bounded, and returns what gives it back.
func (h *Host) enter() (leave func(), err error) {
	select {
	case h.slots <- struct{}{}:
		return sync.OnceFunc(func() { <-h.slots }), nil
	default:
		return nil, errSlots
	}
}

var errSlots = errors.New("functions: too many calls are in flight")

// writeReply writes a sealed reply. Its caller's slot is given back first, unless
// other bodies and replies leave no room for this one.
func (h *Host) writeReply(w http.ResponseWriter, reply []byte, leave func()) {
	doc := replyDocument{Reply: base64.StdEncoding.EncodeToString(reply)}
	n := int64(len(doc.Reply))
	if beyond := max(0, 2*n-ownBody); h.bodies.Reserve(beyond) { // the document and its JSON
		defer h.bodies.Release(beyond)
		leave()
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(transferTime(n)))
	writeJSON(w, http.StatusOK, doc)
}

// writeError maps the errors that have no sealed reply.
func (h *Host) writeError(w http.ResponseWriter, err error) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(bodyGrace))
	switch {
	case errors.Is(err, ErrTooLarge), errors.Is(err, mail.ErrTooLarge):
		writeProblem(w, http.StatusRequestEntityTooLarge, CodeTooLarge, err.Error())
	case errors.Is(err, errCannotOpen):
		writeProblem(w, http.StatusBadRequest, CodeCannotOpen, err.Error())
	case errors.Is(err, errBusy), errors.Is(err, errCrowded), errors.Is(err, errSlots), errors.Is(err, errBodies):
		h.metrics.refused.Inc()
		w.Header().Set("Retry-After", "1")
		writeProblem(w, http.StatusServiceUnavailable, CodeBusy, err.Error()+"; try again")
	case errors.Is(err, errLength):
		writeProblem(w, http.StatusLengthRequired, CodeBadRequest, err.Error())
	case errors.Is(err, errTimeout):
		w.Header().Set("Connection", "close")
		writeProblem(w, http.StatusRequestTimeout, CodeTimeout, err.Error())
	case errors.Is(err, errClosed):
		writeProblem(w, http.StatusServiceUnavailable, CodeUnavailable, "the runtime is shutting down; try another")
	case errors.Is(err, ErrFormat):
		writeProblem(w, http.StatusBadRequest, CodeBadRequest, err.Error())
	default:
		writeProblem(w, http.StatusInternalServerError, CodeInternal, "the runtime failed; whether the call happened is unknown")
	}
}

func writeProblem(w http.ResponseWriter, status int, code Code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	writeBody(w, status, &Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail, Code: code,
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	writeBody(w, status, v)
}

func writeBody(w http.ResponseWriter, status int, v any) {
	raw, err := json.Marshal(v)
	if err != nil { // all documents are plain structs of strings
		status, raw = http.StatusInternalServerError, []byte("{}")
	}
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(raw, '\n')) // a caller who went away is not an error
}
