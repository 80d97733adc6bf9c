package story

import _ "embed"

// PasswordManager is the function that the demo deploys and that 'claviger fn init' starts a project with.
//
//go:embed passwords.js
var PasswordManager []byte
