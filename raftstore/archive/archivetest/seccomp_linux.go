//go:build linux && (amd64 || arm64)

package archivetest

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"
)

// filtersWork says whether this system can refuse system calls.
const filtersWork = true

// Rule refuses one system call with an error, always or when an argument, of
// which the low 32 bits count, is not Value (Op '!') or is greater (Op '>').
type Rule struct {
	Call  uintptr
	Errno syscall.Errno
	Arg   int
	Op    byte
	Value uint32
}

const (
	prSetNoNewPrivs = 38
	setModeFilter   = 1
	flagTSync       = 1
	retAllow        = 0x7fff0000
	retErrno        = 0x00050000
	atFdcwd         = 0xffffff9c // -100
	noFd            = 0xffffffff // -1

	bpfLoad  = 0x20 // ld [k]
	bpfEqual = 0x15 // jeq #k
	bpfAbove = 0x25 // jgt #k
	bpfRet   = 0x06
)

var archOf = map[string]struct{ audit, seccomp uint32 }{
	"amd64": {0xc000003e, 317},
	"arm64": {0xc00000b7, 277},
}

type instruction struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// program is the filter in the kernel's form: a load of the call's number and a comparison for each rule.
func program(rules []Rule) []instruction {
	p := []instruction{
		{bpfLoad, 0, 0, 4}, // the architecture: numbers of another one mean nothing here
		{bpfEqual, 1, 0, archOf[runtime.GOARCH].audit},
		{bpfRet, 0, 0, retAllow},
	}
	for _, r := range rules {
		refuse := instruction{bpfRet, 0, 0, retErrno | uint32(r.Errno)}
		p = append(p, instruction{bpfLoad, 0, 0, 0})
		argument := instruction{bpfLoad, 0, 0, uint32(16 + 8*r.Arg)}
		switch r.Op {
		case '!':
			p = append(p, instruction{bpfEqual, 0, 3, uint32(r.Call)}, argument, instruction{bpfEqual, 1, 0, r.Value}, refuse)
		case '>':
			p = append(p, instruction{bpfEqual, 0, 3, uint32(r.Call)}, argument, instruction{bpfAbove, 0, 1, r.Value}, refuse)
		default:
			p = append(p, instruction{bpfEqual, 0, 1, uint32(r.Call)}, refuse)
		}
	}
	return append(p, instruction{bpfRet, 0, 0, retAllow})
}

// install puts the calling thread, or the whole process, under rules for good.
func install(process bool, rules []Rule) error {
	p := program(rules)
	prog := struct {
		n uint16
		p *instruction
	}{uint16(len(p)), &p[0]}
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0); e != 0 {
		return fmt.Errorf("prctl: %w", e)
	}
	flags := uintptr(0)
	if process {
		flags = flagTSync
	}
	thread, _, e := syscall.RawSyscall(uintptr(archOf[runtime.GOARCH].seccomp), setModeFilter, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(p)
	if e != 0 || thread != 0 {
		return fmt.Errorf("seccomp: %w, thread %d", e, thread)
	}
	return nil
}

func refuse(errno syscall.Errno, calls ...uintptr) []Rule {
	var rules []Rule
	for _, c := range calls {
		rules = append(rules, Rule{Call: c, Errno: errno})
	}
	return rules
}

// writesFail refuses the writes of archives, which name their place in the file.
// write(2) is left alone: on the same thread, go test logs which files are opened.
func writesFail(errno syscall.Errno) []Rule {
	return refuse(errno, syscall.SYS_PWRITE64, syscall.SYS_PWRITEV)
}

// syncsFail refuses to make files durable.
func syncsFail(errno syscall.Errno) []Rule {
	return refuse(errno, syscall.SYS_FSYNC, syscall.SYS_FDATASYNC, syscall.SYS_SYNC_FILE_RANGE, syscall.SYS_MSYNC)
}

// opensFail refuses to open or make a file.
func opensFail(errno syscall.Errno) []Rule { return refuse(errno, syscall.SYS_OPENAT) }

// NoMappedFiles refuses to map a file and lets anonymous memory be mapped.
func NoMappedFiles() []Rule {
	return []Rule{{Call: syscall.SYS_MMAP, Errno: syscall.EPERM, Arg: 4, Op: '!', Value: noFd}}
}

// Enclave is what EGo's runtime refuses to a process inside SGX: mapped files,
// calls relative to an open directory, reading directories, links, and fallocate.
func Enclave() []Rule {
	rules := NoMappedFiles()
	for _, c := range []uintptr{syscall.SYS_OPENAT, syscall.SYS_UNLINKAT, syscall.SYS_MKDIRAT, syscall.SYS_RENAMEAT, sysNewfstatat, syscall.SYS_FACCESSAT, syscall.SYS_FCHMODAT} {
		rules = append(rules, Rule{Call: c, Errno: syscall.EBADF, Arg: 0, Op: '!', Value: atFdcwd})
	}
	return append(rules, refuse(syscall.ENOSYS, syscall.SYS_GETDENTS64, syscall.SYS_SYMLINKAT, syscall.SYS_LINKAT, syscall.SYS_FALLOCATE)...)
}

// NoReading refuses to read from any descriptor; only the eight bytes with which Go's poller wakes itself are left.
func NoReading() []Rule {
	return append(refuse(syscall.EPERM, syscall.SYS_PREAD64, syscall.SYS_PREADV, syscall.SYS_READV, syscall.SYS_SENDFILE, syscall.SYS_SPLICE, sysCopyFileRange, sysIOUringSetup),
		Rule{Call: syscall.SYS_READ, Errno: syscall.EPERM, Arg: 2, Op: '>', Value: 8})
}
