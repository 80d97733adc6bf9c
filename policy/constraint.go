package policy

import (
	"slices"
	"strings"
)

// MaxConstraint is the largest constraint text in bytes, as written and in
// canonical form.
const MaxConstraint = 4 << 10

// Constraint is a parsed inline constraint. It is comparable: two constraints
// are equal exactly if they mean the same. The zero Constraint denies.
type Constraint struct {
	canonical string
}

// ParseConstraint reads one constraint. Tokens are separated by spaces, tabs
// or line ends and may stand in any order; hexadecimal may have either case.
// Anything else that differs is refused with a *ParseError, which says what
// to do: unknown, empty, repeated, malformed, missing and pointless tokens,
// and texts beyond MaxConstraint.
func ParseConstraint(text string) (Constraint, error) {
	c, perr := parse(text)
	if perr != nil {
		return Constraint{}, perr
	}
	canonical := c.String()
	if len(canonical) > MaxConstraint {
		return Constraint{}, refuse("", ErrTooLong, "the canonical form has %d bytes, the limit is %d", len(canonical), MaxConstraint)
	}
	return Constraint{canonical}, nil
}

// String returns the canonical form: tokens in a fixed order separated by one
// space, alternatives sorted, hexadecimal in lower case, SEC always written.
func (c Constraint) String() string { return c.canonical }

// IsZero reports whether c is the zero Constraint.
func (c Constraint) IsZero() bool { return c.canonical == "" }

// Insecure reports whether c accepts debug enclaves (and only those). Its
// keys live in a realm of their own.
func (c Constraint) Insecure() bool {
	return slices.Contains(strings.Fields(c.canonical), "SEC:"+string(Insecure))
}

// parse does the work of ParseConstraint.
func parse(text string) (*clauses, *ParseError) {
	if len(text) > MaxConstraint {
		return nil, refuse("", ErrTooLong, "%d bytes, the limit is %d", len(text), MaxConstraint)
	}
	c := &clauses{sec: Stale, fields: map[string][]byte{}}
	seen := map[string]bool{}
	for _, token := range strings.FieldsFunc(text, isSpace) {
		key, perr := c.token(token, seen)
		if perr != nil {
			return nil, perr
		}
		seen[key] = true
	}
	if perr := c.check(); perr != nil {
		return nil, perr
	}
	return c, nil
}

// token reads one token and returns its key.
func (c *clauses) token(token string, seen map[string]bool) (string, *ParseError) {
	key, value, colon := strings.Cut(token, ":")
	switch {
	case !slices.Contains(canonicalOrder, key):
		return "", refuse(key, ErrUnknown, "known tokens, in capitals: %s", strings.Join(canonicalOrder, " "))
	case seen[key] && key != "C" && key != "S" && key != "TD":
		return "", refuse(key, ErrDuplicate, "it may stand once; remove one")
	case key == firmwareOnlyToken && colon:
		return "", refuse(key, ErrValue, "it takes no value; write it without a colon")
	case key != firmwareOnlyToken && value == "":
		return "", refuse(key, ErrEmpty, "write %s:<value>, without a space after the colon", key)
	}
	return key, c.set(key, value)
}

func isSpace(r rune) bool { return r == ' ' || r == '\t' || r == '\n' || r == '\r' }

// check refuses combinations that cannot be meant. A token without effect is
// refused rather than ignored: it would change the key and nothing else.
func (c *clauses) check() *ParseError {
	sgx := len(c.codes)+len(c.signers) > 0
	switch {
	case !sgx && len(c.tds) == 0:
		return refuse("", ErrMissing, "name the code: at least one of C:<mrenclave>, S:<mrsigner> and TD:<mrtd>")
	case len(c.signers) > 0 && c.prod == nil:
		return refuse("S", ErrMissing, "a signer signs many products: add PROD:<n>")
	case !sgx && c.prod != nil:
		return refuse("PROD", ErrUnused, "it concerns SGX, and no C or S stands beside it")
	case !sgx && c.revoke != nil:
		return refuse("REVOKE", ErrUnused, "it concerns SGX, and no C or S stands beside it")
	}
	if len(c.tds) == 0 {
		for _, key := range canonicalOrder {
			if c.fields[key] != nil || (key == firmwareOnlyToken && c.firmwareOnly) {
				return refuse(key, ErrUnused, "it concerns TDX, and no TD stands beside it")
			}
		}
		return nil
	}
	kernel := c.fields["RTMR1"] != nil && c.fields["RTMR2"] != nil
	switch {
	case !kernel && !c.firmwareOnly:
		return refuse("TD", ErrMissing, "MRTD measures firmware only, and the host could boot its own kernel under it: "+
			"add RTMR1:<hex> and RTMR2:<hex>, or accept that with %s", firmwareOnlyToken)
	case kernel && c.firmwareOnly:
		return refuse(firmwareOnlyToken, ErrUnused, "RTMR1 and RTMR2 pin the kernel already; remove it")
	}
	return nil
}

// String writes the canonical form.
func (c *clauses) String() string {
	var tokens []string
	for _, key := range canonicalOrder {
		if key == firmwareOnlyToken && c.firmwareOnly {
			tokens = append(tokens, key)
		}
		for _, v := range c.values(key) {
			tokens = append(tokens, key+":"+v)
		}
	}
	return strings.Join(tokens, " ")
}
