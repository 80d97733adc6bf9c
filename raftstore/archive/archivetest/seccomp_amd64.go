//go:build linux

package archivetest

import "syscall"

const (
	sysNewfstatat    = syscall.SYS_NEWFSTATAT
	sysCopyFileRange = 326
	sysIOUringSetup  = 425
)
