package tcb

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The rules of the design document, stated a second time and in another way: what the code under test computes with
// conditions stands here as a table. Rows are the platform's statuses; columns those of a component. "=" is the row's own.
const mergeTable = `
                                   UpToDate  OutOfDate                     Revoked  NotSupported
UpToDate                           =         OutOfDate                     Revoked  NotSupported
SWHardeningNeeded                  =         OutOfDate                     Revoked  NotSupported
ConfigurationNeeded                =         OutOfDateConfigurationNeeded  Revoked  NotSupported
ConfigurationAndSWHardeningNeeded  =         OutOfDateConfigurationNeeded  Revoked  NotSupported
OutOfDate                          =         =                             Revoked  NotSupported
OutOfDateConfigurationNeeded       =         =                             Revoked  NotSupported
Revoked                            =         =                             =        NotSupported
NotSupported                       =         =                             =        =
`

// table returns the cells by row and column.
func table(t *testing.T) (rows, columns []Status, cell map[[2]Status]Status) {
	t.Helper()
	cell = map[[2]Status]Status{}
	for i, line := range strings.Split(strings.TrimSpace(mergeTable), "\n") {
		words := strings.Fields(line)
		if i == 0 {
			for _, w := range words {
				columns = append(columns, Status(w))
			}
			continue
		}
		row := Status(words[0])
		rows = append(rows, row)
		for n, column := range columns {
			to := Status(words[n+1])
			if to == "=" {
				to = row
			}
			cell[[2]Status{row, column}] = to
		}
	}
	return rows, columns, cell
}

// launches are the ways in which a quote tells of the module in force: not at all, or by TEE_TCB_SVN_2, which reaches the
// latest level or lacks one of the two SVNs that count; in a module with an identity and in one of major version 0.
var launches = map[string]struct {
	svn2    *[16]byte
	current bool // reaches the latest level of module and microcode
}{
	"version 4":               {nil, false},
	"current":                 {&[16]byte{9, 1, 6}, true},
	"newer than known":        {&[16]byte{200, 1, 200}, true},
	"old module in force":     {&[16]byte{8, 1, 6}, false},
	"old microcode in force":  {&[16]byte{9, 1, 5}, false},
	"version 0, current":      {&[16]byte{4, 0, 6}, true},
	"version 0, old module":   {&[16]byte{3, 0, 6}, false},
	"version 0, old firmware": {&[16]byte{4, 0, 5}, false},
}

// expect states what DESIGN.md says: sgx is the status of the level that the SGX part reaches, td of that which all reaches.
func expect(cell map[[2]Status]Status, sgx, td, module, qe Status, relaunch, versioned bool) Status {
	if td == NotSupported || module == NotSupported {
		return NotSupported
	}
	status := cell[[2]Status{td, module}]
	if status == Revoked {
		// Revoked ends it, whatever the QE is.
		return Revoked
	}
	inOrder := []Status{UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded}
	if relaunch && versioned && module == OutOfDate && qe == UpToDate && slices.Contains(inOrder, sgx) && strings.HasPrefix(string(status), "OutOfDate") {
		if strings.Contains(string(sgx)+string(status), "Configuration") {
			return TDRelaunchAdvisedConfigurationNeeded
		}
		return TDRelaunchAdvised
	}
	return cell[[2]Status{status, qe}]
}

// TestMergeTable evaluates every platform status with every status of QE and module and every way of launch, through real
// documents and SVNs, and compares with the table.
func TestMergeTable(t *testing.T) {
	t.Parallel()
	rows, columns, cell := table(t)
	combinations := map[string]int{}
	check := func(kind, what string, got, want Status) {
		combinations[kind]++
		if got != want {
			t.Errorf("%s: %s is %s, the rules say %s", kind, what, got, want)
		}
	}
	for _, platform := range rows {
		for _, component := range columns {
			check("merge", fmt.Sprint(platform, component), Merge(platform, component), cell[[2]Status{platform, component}])
		}
	}
	for _, platform := range rows {
		for _, qe := range columns {
			info := &Info{ID: SGX, Levels: []Level{{SGX: [16]byte{5}, Status: platform}}}
			p := Platform{Components: [16]byte{5}, QEISVSVN: svnOf(qe)}
			if platform == NotSupported {
				info.Levels[0].Status, p.Components[0] = UpToDate, 4
			}
			r, err := Evaluate(info, tableIdentity(), p)
			if err != nil {
				t.Fatal(err)
			}
			check("SGX", fmt.Sprint(platform, qe), r.Status, cell[[2]Status{platform, qe}])
		}
	}
	for _, sgx := range rows {
		for _, td := range rows {
			for _, module := range append(slices.Clone(columns), "version 0") {
				for _, qe := range columns {
					for name, launch := range launches {
						info, p := tableTD(sgx, td, module, qe)
						p.TD.TEETCBSVN2 = launch.svn2
						if sgx == NotSupported && td != NotSupported {
							continue // the SGX part cannot be without a level if the whole has one
						}
						moduleStatus, versioned := module, true
						if module == "version 0" {
							moduleStatus, versioned = UpToDate, false
						}
						r, err := Evaluate(info, tableIdentity(), p)
						if err != nil {
							t.Fatal(err)
						}
						want := expect(cell, sgx, td, moduleStatus, qe, launch.current, versioned)
						check("TDX", fmt.Sprintf("SGX part %s, TD %s, module %s, QE %s, %s", sgx, td, module, qe, name), r.Status, want)
					}
				}
			}
		}
	}
	total := 0
	for kind, n := range combinations {
		t.Logf("%s: %d combinations", kind, n)
		total += n
	}
	if total < 5000 {
		t.Fatalf("only %d combinations", total)
	}
	t.Logf("%d combinations in all", total)
}

// svnOf is the SVN of a QE or module with that status in the documents of the table.
func svnOf(s Status) uint16 {
	return map[Status]uint16{UpToDate: 9, OutOfDate: 7, Revoked: 3, NotSupported: 1}[s]
}

var tableLevels = []ISVLevel{{ISVSVN: 9, Status: UpToDate}, {ISVSVN: 5, Status: OutOfDate}, {ISVSVN: 2, Status: Revoked}}

func tableIdentity() *Identity { return &Identity{ID: TDQE, Levels: tableLevels} }

// tableTD makes documents and SVNs of a TD whose SGX part reaches a level of status sgx and which as a whole reaches one of
// status td. The two differ in the microcode's TDX component.
func tableTD(sgx, td, module, qe Status) (*Info, Platform) {
	const newest, older, oldest, none = 6, 5, 4, 3
	level := func(cpu, microcode byte, s Status) Level {
		if s == NotSupported {
			s = UpToDate // not reached
		}
		return Level{SGX: [16]byte{cpu}, TDX: [16]byte{4, 0, microcode}, Status: s}
	}
	info := &Info{
		ID: TDX, Module: new(Module), Levels: []Level{level(5, newest, sgx), level(5, oldest, td)},
		Modules: []ModuleLevel{{ID: "TDX_01", Levels: tableLevels}},
	}
	svn := [16]byte{byte(svnOf(module)), 1, older}
	if sgx == td {
		svn[2] = newest
	}
	if module == "version 0" {
		svn[0], svn[1] = 4, 0
	}
	p := Platform{Components: [16]byte{5}, QEISVSVN: svnOf(qe), TD: &TD{TEETCBSVN: svn}}
	if td == NotSupported {
		p.TD.TEETCBSVN[2] = none
	}
	if sgx == NotSupported {
		p.Components[0] = 4
	}
	return info, p
}
