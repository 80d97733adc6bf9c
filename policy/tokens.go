package policy

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strconv"
)

// Security is the least state of the platform that a constraint accepts.
type Security string

// The SEC levels, as R3 Conclave names them.
const (
	Secure   Security = "SECURE"   // UpToDate only
	Stale    Security = "STALE"    // also behind on patches; the default
	Insecure Security = "INSECURE" // debug enclaves, and those only, in a realm of their own
)

// clauses is a parsed constraint. Pointers are nil for tokens not given.
type clauses struct {
	codes, signers, tds [][]byte // alternatives: MRENCLAVE, MRSIGNER (32 bytes), MRTD (48 bytes)
	prod, revoke        *uint16  // REVOKE:n stores n; ISVSVN must be at least n+1
	fields              map[string][]byte
	firmwareOnly        bool
	sec                 Security
	expire              *period
}

// tdxFields are the tokens that compare one field of TD evidence, with the
// field's size in bytes.
var tdxFields = map[string]int{
	"RTMR0": 48, "RTMR1": 48, "RTMR2": 48, "RTMR3": 48, "SEAM": 48, "MRCONFIGID": 48,
	"MROWNER": 48, "MROWNERCONFIG": 48, "SERVICETD": 48, "XFAM": 8,
}

// canonicalOrder is the order of tokens in the canonical form.
var canonicalOrder = []string{
	"C", "S", "TD", "PROD", "REVOKE", "RTMR0", "RTMR1", "RTMR2", "RTMR3", firmwareOnlyToken,
	"SEAM", "MRCONFIGID", "MROWNER", "MROWNERCONFIG", "SERVICETD", "XFAM", "SEC", "EXPIRE",
}

// firmwareOnlyToken accepts a TD by its firmware alone; it takes no value.
const firmwareOnlyToken = "FIRMWARE_ONLY_UNSAFE"

// set stores one token. Duplicates of tokens that stand once have been
// refused before.
func (c *clauses) set(key, value string) *ParseError {
	switch key {
	case "C", "S", "TD":
		return c.addAlternative(key, value)
	case "PROD":
		return setNumber(&c.prod, key, value, 65535)
	case "REVOKE":
		return setNumber(&c.revoke, key, value, 65534)
	case firmwareOnlyToken:
		c.firmwareOnly = true
	case "SEC":
		c.sec = Security(value)
		if c.sec != Secure && c.sec != Stale && c.sec != Insecure {
			return refuse(key, ErrValue, "use SECURE, STALE or INSECURE in capitals")
		}
	case "EXPIRE":
		p, err := parsePeriod(value)
		if err != nil {
			return refuse(key, ErrValue, "%v", err)
		}
		c.expire = &p
	default:
		raw, perr := parseHex(key, value, tdxFields[key])
		if perr != nil {
			return perr
		}
		c.fields[key] = raw
	}
	return nil
}

func (c *clauses) addAlternative(key, value string) *ParseError {
	list, size := &c.codes, 32
	switch key {
	case "S":
		list = &c.signers
	case "TD":
		list, size = &c.tds, 48
	}
	raw, perr := parseHex(key, value, size)
	if perr != nil {
		return perr
	}
	if bytes.Count(raw, []byte{0}) == len(raw) {
		return refuse(key, ErrValue, "all zeros is nobody's measurement")
	}
	if slices.ContainsFunc(*list, func(b []byte) bool { return bytes.Equal(b, raw) }) {
		return refuse(key, ErrDuplicate, "the value %s… appears twice; remove one", value[:8])
	}
	*list = append(*list, raw)
	slices.SortFunc(*list, bytes.Compare)
	return nil
}

func setNumber(dst **uint16, key, value string, limit uint64) *ParseError {
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil || n > limit || strconv.FormatUint(n, 10) != value {
		return refuse(key, ErrValue, "use a decimal number from 0 to %d without leading zeros", limit)
	}
	short := uint16(n)
	*dst = &short
	return nil
}

func parseHex(key, value string, size int) ([]byte, *ParseError) {
	raw, err := hex.DecodeString(value)
	if err != nil || len(raw) != size {
		return nil, refuse(key, ErrValue, "use %d hexadecimal digits, the bytes in the order of the quote; got %d characters", 2*size, len(value))
	}
	return raw, nil
}

// values returns the canonical values of a token, none if it is not given.
func (c *clauses) values(key string) []string {
	var list [][]byte
	switch key {
	case "C":
		list = c.codes
	case "S":
		list = c.signers
	case "TD":
		list = c.tds
	case "PROD":
		return number(c.prod)
	case "REVOKE":
		return number(c.revoke)
	case "SEC":
		return []string{string(c.sec)}
	case "EXPIRE":
		if c.expire == nil {
			return nil
		}
		return []string{c.expire.String()}
	default:
		if raw, ok := c.fields[key]; ok {
			list = [][]byte{raw}
		}
	}
	out := make([]string, len(list))
	for i, raw := range list {
		out[i] = hex.EncodeToString(raw)
	}
	return out
}

func number(n *uint16) []string {
	if n == nil {
		return nil
	}
	return []string{strconv.FormatUint(uint64(*n), 10)}
}
