package functions

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"unicode"

	"github.com/claviger/claviger/enclave/functions/engine"
	"github.com/claviger/claviger/enclave/mail"
)

// Target is what a caller pins: all of it comes from sources it trusts, none of
// it from the function host.
type Target struct {
	// RuntimeKey is the raw X25519 public key that the key service states, under
	// the cluster's signature, for ("functions/invoke", x25519) of root generation 1 under Runtime.
	RuntimeKey []byte
	// Runtime is the runtime's canonical constraint.
	Runtime string
	// Project and Code say which function's owner and code the caller means.
	Project ProjectID
	Code    CodeHash
}

// Session is a runtime's session id, 16 bytes. It is public, and a false one only
// makes the runtime refuse.
type Session [idSize]byte

// Result is what a function returned.
type Result struct {
	Value         json.RawMessage
	Logs          []engine.LogLine
	LogsTruncated bool
}

// SealCall seals a call of one function with its arguments, a JSON array, under a
// fresh invocation id. Sending the sealed call twice runs it at most once.
func SealCall(t Target, session Session, function string, args []byte) (sealed []byte, reply *CallOpener, err error) {
	if err := checkFunction(function); err != nil {
		return nil, nil, err
	}
	if len(args) > MaxArgs {
		return nil, nil, fmt.Errorf("%w: arguments have up to %d bytes, not %d", ErrTooLarge, MaxArgs, len(args))
	}
	to, err := mail.ParseRecipient(t.RuntimeKey)
	if err != nil {
		return nil, nil, fmt.Errorf("functions: the runtime's key: %w", err)
	}
	m := callMessage{Session: session, Args: args}
	if _, err := rand.Read(m.Invocation[:]); err != nil {
		return nil, nil, err
	}
	body, err := cborEnc.Marshal(m)
	if err != nil {
		return nil, nil, fmt.Errorf("functions: encoding the call: %w", err)
	}
	sealed, opener, err := mail.SealRequest(to, callInfo(t.Runtime, t.Project, function, t.Code), nil, body)
	if err != nil {
		return nil, nil, err
	}
	return sealed, &CallOpener{opener}, nil
}

// CallOpener opens the reply to one sealed call.
type CallOpener struct{ reply *mail.ReplyOpener }

// OpenReply returns what the function returned, or the enclave's refusal as a
// CallError. ErrReply says that the answer did not come from the enclave.
func (o *CallOpener) OpenReply(sealed []byte) (Result, error) {
	m, err := openReply(o.reply, sealed)
	if err != nil {
		return Result{}, err
	}
	if err := m.err(); err != nil {
		return Result{}, err
	}
	return Result{Value: m.Value, Logs: unpackLogs(m.Logs), LogsTruncated: m.Truncated}, nil
}

func openReply(opener *mail.ReplyOpener, sealed []byte) (*replyMessage, error) {
	raw, err := opener.Open(nil, sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReply, err)
	}
	m, err := decode[replyMessage](raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReply, err)
	}
	return &m, nil
}

func (m *replyMessage) err() error {
	if m.Code == "" {
		return nil
	}
	return &CallError{Code: m.Code, Message: m.Message, Name: m.Name, Stack: m.Stack, Logs: unpackLogs(m.Logs)}
}

// SealDeployment seals a signed deployment with its code to a runtime.
func SealDeployment(runtimeKey []byte, d Deployment, code []byte) (sealed []byte, reply *DeployOpener, err error) {
	id, err := d.ProjectID()
	if err != nil {
		return nil, nil, err
	}
	to, err := mail.ParseRecipient(runtimeKey)
	if err != nil {
		return nil, nil, fmt.Errorf("functions: the runtime's key: %w", err)
	}
	body, err := cborEnc.Marshal(deployMessage{d, code})
	if err != nil {
		return nil, nil, fmt.Errorf("functions: encoding the deployment: %w", err)
	}
	if len(body) > maxMessage {
		return nil, nil, fmt.Errorf("%w: the deployment has %d bytes", ErrTooLarge, len(body))
	}
	sealed, opener, err := mail.SealRequest(to, deployInfo(d.Runtime, id), nil, body)
	if err != nil {
		return nil, nil, err
	}
	return sealed, &DeployOpener{opener}, nil
}

// DeployOpener opens the reply to one sealed deployment.
type DeployOpener struct{ reply *mail.ReplyOpener }

// OpenReply returns the sequence number in force, which beside ErrStaleSequence is
// the one to exceed, or the enclave's refusal as a CallError.
func (o *DeployOpener) OpenReply(sealed []byte) (sequence uint64, err error) {
	m, err := openReply(o.reply, sealed)
	if err != nil {
		return 0, err
	}
	return m.Sequence, m.err()
}

// Client calls the functions of one project on one function host, which it does
// not trust. The zero Client refuses. It is safe for concurrent use.
type Client struct {
	// Endpoint is the host's base URL, such as http://fn.example:8080.
	Endpoint string
	// HTTP defaults to http.DefaultClient. Redirects need no defence: the answer
	// opens only if the runtime sealed it.
	HTTP *http.Client
	// Target is what the caller pins; Code is not needed to deploy.
	Target Target

	mu      sync.Mutex
	session *Session
}

// Call runs one function with its arguments, a JSON array, and returns its result.
// It repeats a call only when the enclave itself said, sealed, that it refused it
// for its session; after any other failure to get an answer, whether the call
// happened is unknown.
func (c *Client) Call(ctx context.Context, function string, args []byte) (Result, error) {
	const attempts = 3
	for attempt := 1; ; attempt++ {
		session, err := c.currentSession(ctx, attempt > 1)
		if err != nil {
			return Result{}, err
		}
		sealed, opener, err := SealCall(c.Target, session, function, args)
		if err != nil {
			return Result{}, err
		}
		reply, err := c.post(ctx, "/v1/functions/"+c.Target.Project.String()+"/"+url.PathEscape(function),
			callDocument{c.Target.Code.String(), base64.StdEncoding.EncodeToString(sealed)})
		if err != nil {
			return Result{}, err
		}
		result, err := opener.OpenReply(reply)
		if errors.Is(err, ErrStaleSession) && attempt < attempts {
			continue
		}
		return result, err
	}
}

// Deploy signs code as the owner and deploys it under a sequence number. It
// returns the sequence number in force; beside ErrStaleSequence that is the one
// to exceed. The project's name must give Target.Project.
func (c *Client) Deploy(ctx context.Context, owner crypto.Signer, project string, code []byte, sequence uint64) (uint64, error) {
	d, err := SignDeployment(owner, project, c.Target.Runtime, code, sequence)
	if err != nil {
		return 0, err
	}
	id, err := ProjectIDOf(owner.Public().(ed25519.PublicKey), project)
	if err != nil {
		return 0, err
	}
	if id != c.Target.Project {
		return 0, fmt.Errorf("%w: owner and name give project %s, not %s", ErrConfig, id, c.Target.Project)
	}
	sealed, opener, err := SealDeployment(c.Target.RuntimeKey, d, code)
	if err != nil {
		return 0, err
	}
	reply, err := c.post(ctx, "/v1/projects/"+id.String()+"/deployments",
		deployDocument{base64.StdEncoding.EncodeToString(sealed)})
	if err != nil {
		return 0, err
	}
	return opener.OpenReply(reply)
}

// currentSession returns the session to seal for, asking the host when there is
// none yet or the last one was refused.
func (c *Client) currentSession(ctx context.Context, again bool) (Session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != nil && !again {
		return *c.session, nil
	}
	var doc runtimeDocument
	members := map[string]*string{"constraint": &doc.Constraint, "public_key": &doc.PublicKey, "session": &doc.Session}
	if err := c.do(ctx, http.MethodGet, "/v1/runtime", nil, members); err != nil {
		return Session{}, err
	}
	// Told early and clearly instead of by a request that does not open.
	if doc.Constraint != c.Target.Runtime {
		return Session{}, fmt.Errorf("%w: %s runs %q, the pinned runtime is %q", ErrWrongRuntime, c.Endpoint, doc.Constraint, c.Target.Runtime)
	}
	raw, err := parseBase64("session", doc.Session)
	if err != nil || len(raw) != idSize {
		return Session{}, fmt.Errorf("%w: the session", ErrFormat)
	}
	s := Session(raw)
	c.session = &s
	return s, nil
}

func (c *Client) post(ctx context.Context, path string, doc any) ([]byte, error) {
	raw, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("functions: encoding the request: %w", err)
	}
	var reply string
	if err := c.do(ctx, http.MethodPost, path, raw, map[string]*string{"reply": &reply}); err != nil {
		return nil, err
	}
	return parseBase64("reply", reply)
}

// do exchanges one document; a refusal in the clear is a Problem.
func (c *Client) do(ctx context.Context, method, path string, body []byte, members map[string]*string) error {
	if c.Endpoint == "" {
		return fmt.Errorf("%w: set Endpoint", ErrConfig)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.Endpoint, "/")+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("functions: asking %s: %w", c.Endpoint, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return fmt.Errorf("functions: the answer of %s: %w", c.Endpoint, err)
	}
	if resp.StatusCode != http.StatusOK {
		return parseProblem(resp.StatusCode, raw)
	}
	return parseDocument(raw, members)
}

func parseProblem(status int, raw []byte) error {
	p := &Problem{}
	if len(raw) > 64<<10 || json.Unmarshal(raw, p) != nil || p.Code == "" {
		p = &Problem{Code: "unknown", Detail: "the answer is not a problem document"}
	}
	p.Status = status
	p.Code, p.Detail = Code(printable(string(p.Code))), printable(p.Detail)
	return p
}

// printable keeps a hostile host from writing control sequences to a terminal.
func printable(text string) string {
	if len(text) > 1<<10 {
		text = text[:1<<10]
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
