package tcb

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestFaultClasses performs, one by one, what goes wrong in verifiers: each case is an input on which the faulty way of
// evaluating gives another answer than the right one.
func TestFaultClasses(t *testing.T) {
	t.Parallel()
	td := func(svn ...byte) *TD { d := new(TD); copy(d.TEETCBSVN[:], svn); return d }
	isv := func(svn uint16, s Status) ISVLevel { return ISVLevel{ISVSVN: svn, Status: s} }
	good := []ISVLevel{isv(9, UpToDate), isv(5, OutOfDate)}
	qe := &Identity{ID: TDQE, Levels: []ISVLevel{isv(1, UpToDate)}}
	for name, tc := range map[string]struct {
		info *Info
		p    Platform
		want Status
	}{
		// The module has its own identity from major version 1 on, and its good status must not stand for the platform's.
		"platform status lost when the module has an identity": {
			&Info{Levels: []Level{{Status: OutOfDate}}, Module: new(Module), Modules: []ModuleLevel{{ID: "TDX_01", Levels: good}}},
			Platform{TD: td(9, 1), QEISVSVN: 1}, OutOfDate,
		},
		"module identity ignored": {
			&Info{Levels: []Level{{Status: UpToDate}}, Module: new(Module), Modules: []ModuleLevel{{ID: "TDX_01", Levels: good}}},
			Platform{TD: td(5, 1), QEISVSVN: 1}, OutOfDate,
		},
		"module without a level taken for good": {
			&Info{Levels: []Level{{Status: UpToDate}}, Module: new(Module), Modules: []ModuleLevel{{ID: "TDX_01", Levels: good}}},
			Platform{TD: td(4, 1), QEISVSVN: 1}, NotSupported,
		},
		// As one number the platform's 9, 0 is more than 5, 5; one by one it is not.
		"SGX components compared as one number": {
			&Info{Levels: []Level{{SGX: [16]byte{5, 5}, Status: UpToDate}, {Status: Revoked}}},
			Platform{Components: [16]byte{9, 0}, QEISVSVN: 1}, Revoked,
		},
		"TDX components compared as one number": {
			&Info{Levels: []Level{{TDX: [16]byte{2: 5, 3: 5}, Status: UpToDate}, {Status: OutOfDate}}, Module: new(Module),
				Modules: []ModuleLevel{{ID: "TDX_01", Levels: good}}},
			Platform{TD: td(9, 1, 9, 0), QEISVSVN: 1}, OutOfDate,
		},
		// A level asks for module SVN 20, which is of another major version's counting.
		"TEE_TCB_SVN[0] and [1] compared as ordinary components": {
			&Info{Levels: []Level{{TDX: [16]byte{20, 5, 6}, Status: UpToDate}, {Status: OutOfDate}}, Module: new(Module),
				Modules: []ModuleLevel{{ID: "TDX_01", Levels: good}}},
			Platform{TD: td(9, 1, 6), QEISVSVN: 1}, UpToDate,
		},
		"TEE_TCB_SVN[0] not compared in major version 0": {
			&Info{Levels: []Level{{TDX: [16]byte{4, 0, 6}, Status: UpToDate}, {Status: OutOfDate}}, Module: new(Module)},
			Platform{TD: td(3, 0, 6), QEISVSVN: 1}, OutOfDate,
		},
		// The TD's own SVNs are low; the platform's SGX components, which have nothing to do with them, are high.
		"TDX components compared with SGX SVNs": {
			&Info{Levels: []Level{{TDX: [16]byte{2: 6, 3: 6}, Status: UpToDate}, {Status: OutOfDate}}, Module: new(Module),
				Modules: []ModuleLevel{{ID: "TDX_01", Levels: good}}},
			Platform{Components: [16]byte{9, 9, 9, 9, 9, 9}, TD: td(9, 1, 5, 5), QEISVSVN: 1}, OutOfDate,
		},
		"PCESVN not compared": {
			&Info{Levels: []Level{{PCESVN: 13, Status: UpToDate}, {PCESVN: 5, Status: OutOfDate}}},
			Platform{PCESVN: 12, QEISVSVN: 1}, OutOfDate,
		},
		"QE level not evaluated": {
			&Info{Levels: []Level{{Status: UpToDate}}}, Platform{QEISVSVN: 0}, NotSupported,
		},
		// Version 16 is TDX_10; in decimal that is version 10, whose module is out of date here.
		"module id written in decimal": {
			&Info{Levels: []Level{{Status: UpToDate}}, Module: new(Module), Modules: []ModuleLevel{
				{ID: "TDX_0A", Levels: []ISVLevel{isv(0, UpToDate)}}, {ID: "TDX_10", Levels: []ISVLevel{isv(0, OutOfDate)}},
				{ID: "TDX_16", Levels: []ISVLevel{isv(0, Revoked)}},
			}},
			Platform{TD: td(9, 16), QEISVSVN: 1}, OutOfDate,
		},
	} {
		r, err := Evaluate(tc.info, qe, tc.p)
		if err != nil || r.Status != tc.want {
			t.Errorf("%s: %s %v, want %s", name, r.Status, err, tc.want)
		}
	}
}

// TestModuleIDs: the id of every major version is two hexadecimal digits, and no other version's.
func TestModuleIDs(t *testing.T) {
	t.Parallel()
	info := &Info{Levels: []Level{{Status: UpToDate}}, Module: new(Module)}
	for v := 1; v < 256; v++ {
		info.Modules = append(info.Modules, ModuleLevel{ID: "TDX_" + strings.ToUpper(hex.EncodeToString([]byte{byte(v)})), Levels: []ISVLevel{
			{ISVSVN: 0, Status: UpToDate, Advisories: []string{fmt.Sprint(v)}},
		}})
	}
	for v := 1; v < 256; v++ {
		r, err := Evaluate(info, &Identity{Levels: []ISVLevel{{Status: UpToDate}}}, Platform{TD: &TD{TEETCBSVN: [16]byte{1, byte(v)}}})
		if err != nil || len(r.Module.Advisories) != 1 || r.Module.Advisories[0] != fmt.Sprint(v) {
			t.Fatalf("version %d: %+v %v", v, r.Module, err)
		}
		fewer := *info
		fewer.Modules = append(append([]ModuleLevel{}, info.Modules[:v-1]...), info.Modules[v:]...)
		if _, err := Evaluate(&fewer, &Identity{}, Platform{TD: &TD{TEETCBSVN: [16]byte{1, byte(v)}}}); !errors.Is(err, ErrModule) {
			t.Fatalf("version %d without an identity: %v", v, err)
		}
	}
}
