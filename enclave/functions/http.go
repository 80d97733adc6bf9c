package functions

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"

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
	r.HandleFunc("/v1/projects/{project}/deployments", h.limited(h.serveDeploy)).Methods(http.MethodPost)
	r.HandleFunc("/v1/functions/{project}/{name}", h.limited(h.serveCall)).Methods(http.MethodPost)
	r.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, http.StatusNotFound, CodeNotFound, "there is no such resource")
	})
	r.MethodNotAllowedHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, http.StatusMethodNotAllowed, CodeMethod, "the resource has no such method")
	})
	return r
}

// limited holds one of the slots for calls in flight while next runs, so that
// memory for bodies and functions is bounded.
func (h *Host) limited(next func(http.ResponseWriter, *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case h.slots <- struct{}{}:
			defer func() { <-h.slots }()
		default:
			w.Header().Set("Retry-After", "1")
			writeProblem(w, http.StatusServiceUnavailable, CodeBusy, "too many calls are in flight; try again")
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxDocument)
		next(w, r)
	}
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
	id, sealed, err := readRequest(r, map[string]*string{"code_hash": &doc.CodeHash, "request": &doc.Request})
	if err != nil {
		writeError(w, err)
		return
	}
	code, err := ParseCodeHash(doc.CodeHash)
	if err != nil {
		writeError(w, err)
		return
	}
	reply, err := h.Call(r.Context(), id, mux.Vars(r)["name"], code, sealed)
	writeReply(w, reply, err)
}

func (h *Host) serveDeploy(w http.ResponseWriter, r *http.Request) {
	var doc deployDocument
	id, sealed, err := readRequest(r, map[string]*string{"request": &doc.Request})
	if err != nil {
		writeError(w, err)
		return
	}
	reply, err := h.Deploy(r.Context(), id, sealed)
	writeReply(w, reply, err)
}

// readRequest reads the project from the path and the sealed request from a body
// with exactly the given members.
func readRequest(r *http.Request, members map[string]*string) (ProjectID, []byte, error) {
	id, err := ParseProjectID(mux.Vars(r)["project"])
	if err != nil {
		return ProjectID{}, nil, err
	}
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return ProjectID{}, nil, ErrTooLarge
		}
		return ProjectID{}, nil, errors.Join(ErrFormat, err)
	}
	if err := parseDocument(raw, members); err != nil {
		return ProjectID{}, nil, err
	}
	sealed, err := parseBase64("request", *members["request"])
	return id, sealed, err
}

func writeReply(w http.ResponseWriter, reply []byte, err error) {
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, replyDocument{Reply: base64.StdEncoding.EncodeToString(reply)})
}

// writeError maps the errors that have no sealed reply.
func writeError(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, ErrTooLarge), errors.Is(err, mail.ErrTooLarge):
		writeProblem(w, http.StatusRequestEntityTooLarge, CodeTooLarge, err.Error())
	case errors.Is(err, errCannotOpen):
		writeProblem(w, http.StatusBadRequest, CodeCannotOpen, err.Error())
	case errors.Is(err, errBusy):
		writeProblem(w, http.StatusServiceUnavailable, CodeBusy, "too many projects are in use; try again")
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
