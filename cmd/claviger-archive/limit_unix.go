//go:build unix

package main

import "syscall"

// limitMemory bounds what this process may write to; a process that needs more dies.
func limitMemory(bytes uint64) error {
	return syscall.Setrlimit(syscall.RLIMIT_DATA, &syscall.Rlimit{Cur: bytes, Max: bytes})
}
