//go:build !linux

package archivetest

import "testing"

// Full fills a real file system.
func Full(t *testing.T, _ Kind) { t.Skip("SKIPPED: small file systems are mounted on linux only") }

// ShortWrite lets the kernel cut writes short.
func ShortWrite(t *testing.T, _ Kind) { t.Skip("SKIPPED: writes are cut short on linux only") }
