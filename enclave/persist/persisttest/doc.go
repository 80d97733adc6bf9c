// Package persisttest holds fakes for tests of package persist and of its users:
// an in-memory file layer that fails and crashes on demand, and an in-memory
// freshness register. Nothing here belongs in a shipped binary.
package persisttest
