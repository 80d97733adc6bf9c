//go:build linux

package archivetest

import "syscall"

const (
	sysNewfstatat    = syscall.SYS_FSTATAT
	sysCopyFileRange = 285
	sysIOUringSetup  = 425
)
