package tcb

import (
	"bytes"
	"crypto/ecdsa"
	"fmt"
	"slices"
)

// VerifyInfoReserialized is VerifyInfo for an envelope that something on the way decoded and wrote again, with other white
// space, other escapes, another order of keys, or keys of its own beside the document. The document is written again in
// Intel's form, and the signature must verify over that; what is decoded are those signed bytes, never the ones received. So
// nothing can be read that Intel did not sign. It is the weaker choice all the same: more code runs on bytes that nobody
// vouches for, one document has many encodings, and whoever re-serialises is not noticed.
func VerifyInfoReserialized(envelope []byte, signer *ecdsa.PublicKey) (*Info, error) {
	d := decoders.Get().(*decoder)
	defer d.release()
	v, err := d.reserialized(envelope, "tcbInfo", signer)
	if err != nil {
		return nil, err
	}
	return parseInfo(v)
}

// VerifyIdentityReserialized is to VerifyIdentity what VerifyInfoReserialized is to VerifyInfo.
func VerifyIdentityReserialized(envelope []byte, signer *ecdsa.PublicKey) (*Identity, error) {
	d := decoders.Get().(*decoder)
	defer d.release()
	v, err := d.reserialized(envelope, "enclaveIdentity", signer)
	if err != nil {
		return nil, err
	}
	return parseIdentity(v)
}

// reserialized finds the form of the inner object that signer signed, and decodes that form.
func (d *decoder) reserialized(envelope []byte, name string, signer *ecdsa.PublicKey) (value, error) {
	inner, signature, err := d.split(envelope, name)
	if err != nil {
		return value{}, err
	}
	// The signed form is most often the one that came, then one that lost only its white space.
	for _, write := range []func() []byte{
		func() []byte { return bytes.Clone(inner.text) },
		func() []byte { return inner.append(nil, false) },
		func() []byte { return inner.append(nil, true) },
	} {
		if form := write(); signed(signer, form, &signature) {
			return d.decode(form)
		}
	}
	return value{}, fmt.Errorf("%w: %s, in the form received or written again", ErrSignature, name)
}

// orders are the keys of each kind of object in Intel's documents, in Intel's order. A TDX module stands before an enclave
// identity, which has all of its keys.
var orders = [][]string{
	{"id", "version", "issueDate", "nextUpdate", "fmspc", "pceId", "tcbType", "tcbEvaluationDataNumber", "tdxModule", "tdxModuleIdentities", "tcbLevels"},
	{"id", "mrsigner", "attributes", "attributesMask", "tcbLevels"},
	{"id", "version", "issueDate", "nextUpdate", "tcbEvaluationDataNumber", "miscselect", "miscselectMask", "attributes", "attributesMask", "mrsigner",
		"isvprodid", "tcbLevels"},
	{"tcb", "tcbDate", "tcbStatus", "advisoryIDs"},
	{"sgxtcbcomponents", "pcesvn", "tdxtcbcomponents"},
	version2Order(),
	{"svn", "category", "type"},
}

// version2Order are the keys of a level's TCB in documents of version 2.
func version2Order() (keys []string) {
	for i := range 16 {
		keys = append(keys, fmt.Sprintf("sgxtcbcomp%02dsvn", i+1))
	}
	return append(keys, "pcesvn")
}

// append writes v without white space, with no escape that is not needed, and if ordered with the keys of the objects that
// Intel's documents have in Intel's order.
func (v *value) append(b []byte, ordered bool) []byte {
	switch v.kind {
	case '{':
		members := v.members
		if ordered {
			members = inIntelsOrder(members)
		}
		b = append(b, '{')
		for i := range members {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, members[i].key), ':')
			b = members[i].append(b, ordered)
		}
		return append(b, '}')
	case '[':
		b = append(b, '[')
		for i := range v.members {
			if i > 0 {
				b = append(b, ',')
			}
			b = v.members[i].append(b, ordered)
		}
		return append(b, ']')
	case '"':
		return appendString(b, v.text)
	}
	return append(b, v.text...) // numbers as they were written
}

// inIntelsOrder sorts the members of an object by the first order that has all their keys. An object that fits none stays.
func inIntelsOrder(members []value) []value {
	for _, order := range orders {
		rank := func(m value) int { return slices.Index(order, string(m.key)) }
		if !slices.ContainsFunc(members, func(m value) bool { return rank(m) < 0 }) {
			members = slices.Clone(members)
			slices.SortFunc(members, func(a, b value) int { return rank(a) - rank(b) })
			return members
		}
	}
	return members
}

// appendString writes a JSON string in its shortest form.
func appendString(b, text []byte) []byte {
	b = append(b, '"')
	for _, c := range text {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
