package httpapi

import (
	"reflect"
	"slices"
	"strings"
)

// jsonFields returns the sorted names that encoding/json gives the fields of a struct.
func jsonFields(v any) []string {
	var names []string
	for f := range reflect.TypeOf(v).Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
