//go:build !linux || !(amd64 || arm64)

package archivetest

import (
	"errors"
	"syscall"
)

// filtersWork says whether this system can refuse system calls.
const filtersWork = false

// Rule refuses one system call.
type Rule struct{}

func install(bool, []Rule) error { return errors.ErrUnsupported }

// writesFail refuses every way to write to a file.
func writesFail(syscall.Errno) []Rule { return nil }

// syncsFail refuses to make files durable.
func syncsFail(syscall.Errno) []Rule { return nil }

// opensFail refuses to open or make a file.
func opensFail(syscall.Errno) []Rule { return nil }

// NoMappedFiles refuses to map a file and lets anonymous memory be mapped.
func NoMappedFiles() []Rule { return nil }

// Enclave is what EGo's runtime refuses to a process inside SGX.
func Enclave() []Rule { return nil }

// NoReading refuses to read from any descriptor.
func NoReading() []Rule { return nil }
