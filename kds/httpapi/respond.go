package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"runtime/debug"

	"github.com/claviger/claviger/kds/api"
)

// codeOK is the metric label of a request that was served.
const codeOK = "ok"

// respond writes the one response of a request and returns its code for the metrics.
func (h *handler) respond(w http.ResponseWriter, r *http.Request, rt route, reply any, err error) string {
	var body []byte
	if err == nil {
		if body, err = json.Marshal(reply); err != nil {
			err = fmt.Errorf("encoding the reply: %w", err)
		}
		forget(reply)
	}
	if err != nil {
		p := h.problem(rt, err)
		h.writeProblem(w, r, p)
		return label(p.Code)
	}
	write(w, http.StatusOK, "application/json", body)
	clear(body) // it may hold a key
	return codeOK
}

// forget wipes the key of a reply that has been encoded. Copies in the buffers of HTTP and TLS are overwritten by later
// traffic; this one would stay until it is collected.
func forget(reply any) {
	if k, ok := reply.(api.KeyReply); ok {
		clear(k.Key)
	}
}

// problem chooses what the client is told about err. What is not a refusal is logged in full and told without detail.
func (h *handler) problem(rt route, err error) *api.Problem {
	if p, ok := errors.AsType[*api.Problem](err); ok && p != nil {
		if p.Code == api.CodeInternal {
			h.log.Error("request failed", "route", rt.name(), "error", err)
		}
		return p
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		// The time is over while the cluster was being asked: that is what too few members looks like from here.
		return api.NewProblem(api.CodeNoQuorum, "the cluster did not answer in time and no reply was given; try again")
	}
	h.log.Error("request failed", "route", rt.name(), "error", err)
	return api.NewProblem(api.CodeInternal, "the service failed to answer; try another node, and see this node's log")
}

// writeProblem sends p. A redirect without a usable address would lead nowhere: it becomes "no_quorum".
func (h *handler) writeProblem(w http.ResponseWriter, r *http.Request, p *api.Problem) {
	if p.Code == api.CodeNotLeader {
		if p.Leader == nil || !api.ValidAddress(p.Leader.APIAddr) {
			p = api.NewProblem(api.CodeNoQuorum, "this node does not lead and knows no leader; try again")
		} else {
			to := url.URL{Scheme: "https", Host: p.Leader.APIAddr, Path: r.URL.Path}
			w.Header().Set("Location", to.String())
		}
	}
	status := p.Status
	if status < 300 || status > 599 { // never let a refusal look like success
		status = p.Code.Status()
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	body, err := json.Marshal(p)
	if err != nil {
		h.log.Error("encoding a problem", "error", err)
		status, body = http.StatusInternalServerError, []byte(`{"code":"internal"}`)
	}
	write(w, status, api.ProblemType, body)
}

func write(w http.ResponseWriter, status int, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write(body) // an error means that the client is gone
}

// refuseAll answers requests that match no route.
func (h *handler) refuseAll(status int, detail string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := api.NewProblem(api.CodeNotFound, detail)
		p.Status = status
		h.writeProblem(w, r, p)
		h.metrics.observe("none", string(p.Code), 0)
	})
}

func tooLarge(limit int) *api.Problem {
	if limit == 0 {
		return api.NewProblem(api.CodeTooLarge, "this endpoint takes no body; send none")
	}
	return api.NewProblem(api.CodeTooLarge, fmt.Sprintf("the body exceeds %d bytes; send a smaller one", limit))
}

// panicError describes a panic for the log. The value of a deliberate panic is left out, since nobody knows what is in it;
// the runtime's own messages hold no data.
func panicError(v any) error {
	if e, ok := v.(runtime.Error); ok {
		return fmt.Errorf("panic: %s\n%s", e.Error(), debug.Stack())
	}
	return fmt.Errorf("panic with a %T\n%s", v, debug.Stack())
}
