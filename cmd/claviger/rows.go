package main

import (
	"fmt"
	"io"
)

// rows prints names and values in two columns.
type rows struct{ w io.Writer }

func (r rows) add(name string, format string, args ...any) {
	fmt.Fprintf(r.w, "%-15s %s\n", name, fmt.Sprintf(format, args...))
}
