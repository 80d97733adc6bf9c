package engine

import (
	"context"
	"encoding/binary"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// wasiModule is the import module of the JavaScript engine's C library.
const wasiModule = "wasi_snapshot_preview1"

// Error numbers of WASI preview 1.
const (
	errnoSuccess = 0
	errnoBadf    = 8
	errnoFault   = 21
	errnoInval   = 28
	errnoNosys   = 52
	errnoSpipe   = 70
)

// instantiateWASI provides the 21 functions that the engine imports, and no other. There is no file system, no
// environment and no waiting: descriptors 1 and 2 write to the call's log, the clock is the call's frozen clock, and
// everything else answers with an error. Nothing here is state: the host keeps no descriptor between or within calls.
func instantiateWASI(ctx context.Context, r wazero.Runtime) error {
	b := r.NewHostModuleBuilder(wasiModule)
	i32, i64 := api.ValueTypeI32, api.ValueTypeI64
	refuse := func(name string, errno uint64, params ...api.ValueType) {
		fn := func(_ context.Context, _ api.Module, stack []uint64) { stack[0] = errno }
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(fn), params, []api.ValueType{i32}).Export(name)
	}
	provide := func(name string, fn api.GoModuleFunc, params ...api.ValueType) {
		b.NewFunctionBuilder().WithGoModuleFunction(fn, params, []api.ValueType{i32}).Export(name)
	}
	provide("environ_sizes_get", wasiEnvironSizes, i32, i32)
	provide("environ_get", func(_ context.Context, _ api.Module, s []uint64) { s[0] = errnoSuccess }, i32, i32)
	provide("clock_time_get", wasiClock, i32, i64, i32)
	provide("fd_write", wasiWrite, i32, i32, i32, i32)
	provide("fd_fdstat_get", wasiFdstat, i32, i32)
	refuse("fd_close", errnoBadf, i32)
	refuse("fd_fdstat_set_flags", errnoBadf, i32, i32)
	refuse("fd_prestat_get", errnoBadf, i32, i32) // the C library's start-up stops looking for directories here
	refuse("fd_prestat_dir_name", errnoBadf, i32, i32, i32)
	refuse("fd_read", errnoBadf, i32, i32, i32, i32)
	refuse("fd_readdir", errnoBadf, i32, i32, i32, i64, i32)
	refuse("fd_seek", errnoSpipe, i32, i64, i32, i32)
	refuse("path_create_directory", errnoNosys, i32, i32, i32)
	refuse("path_filestat_get", errnoNosys, i32, i32, i32, i32, i32)
	refuse("path_filestat_set_times", errnoNosys, i32, i32, i32, i32, i64, i64, i32)
	refuse("path_open", errnoNosys, i32, i32, i32, i32, i32, i64, i64, i32, i32)
	refuse("path_remove_directory", errnoNosys, i32, i32, i32)
	refuse("path_rename", errnoNosys, i32, i32, i32, i32, i32, i32)
	refuse("path_unlink_file", errnoNosys, i32, i32, i32)
	refuse("poll_oneoff", errnoNosys, i32, i32, i32, i32)
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(wasiExit), []api.ValueType{i32}, nil).Export("proc_exit")
	_, err := b.Instantiate(ctx)
	return err
}

func wasiEnvironSizes(_ context.Context, m api.Module, s []uint64) {
	mem := m.Memory()
	if !mem.WriteUint32Le(uint32(s[0]), 0) || !mem.WriteUint32Le(uint32(s[1]), 0) {
		s[0] = errnoFault
		return
	}
	s[0] = errnoSuccess
}

// wasiClock answers every clock with the call's own: it stands still between host calls, so that a script cannot
// measure time with it.
func wasiClock(ctx context.Context, m api.Module, s []uint64) {
	st := stateOf(ctx)
	if !m.Memory().WriteUint64Le(uint32(s[2]), uint64(st.clock().UnixNano())) {
		s[0] = errnoFault
		return
	}
	s[0] = errnoSuccess
}

// wasiFdstat says that 1 and 2 are character devices, so that the C library flushes them by line.
func wasiFdstat(_ context.Context, m api.Module, s []uint64) {
	if fd := uint32(s[0]); fd != 1 && fd != 2 {
		s[0] = errnoBadf
		return
	}
	var stat [24]byte
	stat[0] = 2                                           // filetype character_device
	binary.LittleEndian.PutUint64(stat[8:], uint64(1)<<6) // rights: fd_write
	binary.LittleEndian.PutUint64(stat[16:], uint64(0))   // inherited rights: none
	if !m.Memory().Write(uint32(s[1]), stat[:]) {
		s[0] = errnoFault
		return
	}
	s[0] = errnoSuccess
}

// wasiWrite takes what the engine's C code prints (diagnostics before an abort, mostly) into the call's log.
func wasiWrite(ctx context.Context, m api.Module, s []uint64) {
	fd, iovs, count, out := uint32(s[0]), uint32(s[1]), uint32(s[2]), uint32(s[3])
	if fd != 1 && fd != 2 {
		s[0] = errnoBadf
		return
	}
	if count > 64 {
		s[0] = errnoInval
		return
	}
	mem, st, total := m.Memory(), stateOf(ctx), uint32(0)
	for i := range count {
		ptr, ok1 := mem.ReadUint32Le(iovs + 8*i)
		n, ok2 := mem.ReadUint32Le(iovs + 8*i + 4)
		text, ok3 := mem.Read(ptr, n)
		if !ok1 || !ok2 || !ok3 {
			s[0] = errnoFault
			return
		}
		st.logs.add("engine", text)
		total += n
	}
	if !mem.WriteUint32Le(out, total) {
		s[0] = errnoFault
		return
	}
	s[0] = errnoSuccess
}

// wasiExit ends the call: nothing in the engine exits in good order.
func wasiExit(ctx context.Context, _ api.Module, _ []uint64) {
	stateOf(ctx).halt(ErrTrap)
}
