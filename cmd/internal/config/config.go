package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/token"
)

// MaxFile is the largest configuration file that is read, in bytes.
const MaxFile = 256 << 10

// Errors of Parse and Load. Each is wrapped with the place in the file.
var (
	ErrTooLarge = errors.New("configuration file is too large")
	ErrEmpty    = errors.New("configuration file is empty")
	ErrFeature  = errors.New("YAML feature not allowed in a configuration file")
	ErrInvalid  = errors.New("invalid configuration file")
)

// refused names the YAML features that let a file mean something other than what it shows.
var refused = map[token.Type]string{
	token.AnchorType:    "anchors",
	token.AliasType:     "aliases",
	token.MergeKeyType:  "merge keys",
	token.TagType:       "tags",
	token.DirectiveType: "directives",
}

// Load reads and parses the file into a T.
func Load[T any](name string) (T, error) {
	var zero T
	f, err := os.Open(name)
	if err != nil {
		return zero, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return zero, err
	}
	v, err := Parse[T](raw)
	if err != nil {
		return zero, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

// Parse decodes exactly one YAML document into a T; every key must be a field of T and occur once.
func Parse[T any](raw []byte) (T, error) {
	var v, zero T
	if len(raw) > MaxFile {
		return zero, fmt.Errorf("%w: at most %d bytes", ErrTooLarge, MaxFile)
	}
	if err := checkTokens(raw); err != nil {
		return zero, err
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw), yaml.Strict())
	switch err := dec.Decode(&v); {
	case errors.Is(err, io.EOF):
		return zero, ErrEmpty
	case err != nil:
		return zero, fmt.Errorf("%w: %s", ErrInvalid, yaml.FormatError(err, false, true))
	}
	var second any
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return zero, fmt.Errorf("%w: a second document; use one file per configuration", ErrFeature)
	}
	return v, nil
}

func checkTokens(raw []byte) error {
	documents, content := 0, false
	for _, tk := range lexer.Tokenize(string(raw)) {
		if what, bad := refused[tk.Type]; bad {
			return fmt.Errorf("%w: line %d: %s; write the value out where it is used", ErrFeature, tk.Position.Line, what)
		}
		switch tk.Type {
		case token.DocumentHeaderType:
			documents++
			if documents > 1 || content {
				return fmt.Errorf("%w: line %d: a second document; use one file per configuration", ErrFeature, tk.Position.Line)
			}
		case token.CommentType:
		default:
			content = true
		}
	}
	if !content {
		return ErrEmpty
	}
	return nil
}
