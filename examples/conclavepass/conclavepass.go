// Package conclavepass is an example: a password manager as a confidential function, in the shape of a Conclave
// Functions project. The code is src/index.js; dist/bundle.js is what webpack makes of it.
package conclavepass

import _ "embed"

// Bundle is dist/bundle.js, ready to deploy. It exports addEntry, get, query and remove.
//
//go:embed dist/bundle.js
var Bundle []byte
