package tcb

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMerge(t *testing.T) {
	t.Parallel()
	// Rows: platform status. Columns: status of the component.
	columns := []Status{UpToDate, OutOfDate, Revoked, NotSupported}
	rows := map[Status][]Status{
		UpToDate:                          {UpToDate, OutOfDate, Revoked, NotSupported},
		SWHardeningNeeded:                 {SWHardeningNeeded, OutOfDate, Revoked, NotSupported},
		ConfigurationNeeded:               {ConfigurationNeeded, OutOfDateConfigurationNeeded, Revoked, NotSupported},
		ConfigurationAndSWHardeningNeeded: {ConfigurationAndSWHardeningNeeded, OutOfDateConfigurationNeeded, Revoked, NotSupported},
		OutOfDate:                         {OutOfDate, OutOfDate, Revoked, NotSupported},
		OutOfDateConfigurationNeeded:      {OutOfDateConfigurationNeeded, OutOfDateConfigurationNeeded, Revoked, NotSupported},
		Revoked:                           {Revoked, Revoked, Revoked, NotSupported},
		NotSupported:                      {NotSupported, NotSupported, NotSupported, NotSupported},
		TDRelaunchAdvised:                 {TDRelaunchAdvised, TDRelaunchAdvised, Revoked, NotSupported},
	}
	for platform, row := range rows {
		for i, component := range columns {
			if got := Merge(platform, component); got != row[i] {
				t.Errorf("Merge(%s, %s) = %s, want %s", platform, component, got, row[i])
			}
		}
	}
	if Merge("", UpToDate) != "" {
		t.Error("the zero status becomes a status")
	}
}

func date(year int) time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }

func level(sgx, tdx [16]byte, pcesvn uint16, year int, status Status, advisories ...string) Level {
	return Level{SGX: sgx, TDX: tdx, PCESVN: pcesvn, Date: date(year), Status: status, Advisories: advisories}
}

// identity is of a QE whose SVN 8 is up to date, 6 out of date and 4 revoked.
func identity() *Identity {
	return &Identity{ID: QE, Levels: []ISVLevel{
		{8, date(2024), UpToDate, nil}, {6, date(2023), OutOfDate, []string{"INTEL-SA-QE"}}, {4, date(2022), Revoked, nil},
	}}
}

func TestLevelSelection(t *testing.T) {
	t.Parallel()
	info := &Info{ID: SGX, Levels: []Level{
		level([16]byte{5, 5, 2}, [16]byte{}, 13, 2025, UpToDate),
		level([16]byte{5, 5, 2}, [16]byte{}, 11, 2024, ConfigurationNeeded, "INTEL-SA-B", "INTEL-SA-A"),
		level([16]byte{5, 4, 2}, [16]byte{}, 5, 2023, OutOfDate),
		level([16]byte{2, 2, 2}, [16]byte{}, 5, 2022, Revoked),
	}}
	for name, tc := range map[string]struct {
		components [16]byte
		pcesvn     uint16
		want       Status
	}{
		"exact":                               {[16]byte{5, 5, 2}, 13, UpToDate},
		"higher everywhere":                   {[16]byte{9, 9, 9, 9}, 99, UpToDate},
		"PCESVN one less":                     {[16]byte{5, 5, 2}, 12, ConfigurationNeeded},
		"one component less":                  {[16]byte{5, 4, 2}, 13, OutOfDate},
		"a higher first makes up for nothing": {[16]byte{9, 4, 2}, 13, OutOfDate},
		"a lower last component":              {[16]byte{9, 9, 1}, 99, NotSupported},
		"revoked level":                       {[16]byte{4, 9, 9}, 99, Revoked},
		"PCESVN below all":                    {[16]byte{9, 9, 9}, 4, NotSupported},
		"nothing":                             {[16]byte{}, 0, NotSupported},
	} {
		r, err := Evaluate(info, identity(), Platform{Components: tc.components, PCESVN: tc.pcesvn, QEISVSVN: 8})
		if err != nil || r.Status != tc.want || r.Platform.Status != tc.want || r.Module != nil {
			t.Errorf("%s: %+v, %v; want %s", name, r, err, tc.want)
		}
	}
	r, err := Evaluate(info, identity(), Platform{Components: [16]byte{5, 5, 2}, PCESVN: 11, QEISVSVN: 6})
	if err != nil || r.Status != OutOfDateConfigurationNeeded || r.QE.Status != OutOfDate || !r.Date.Equal(date(2023)) ||
		!slices.Equal(r.Advisories, []string{"INTEL-SA-A", "INTEL-SA-B", "INTEL-SA-QE"}) {
		t.Errorf("merged: %+v, %v", r, err)
	}
	for svn, want := range map[uint16]Status{9: UpToDate, 8: UpToDate, 7: OutOfDate, 6: OutOfDate, 5: Revoked, 3: NotSupported} {
		r, err := Evaluate(info, identity(), Platform{Components: [16]byte{5, 5, 2}, PCESVN: 13, QEISVSVN: svn})
		if err != nil || r.Status != want {
			t.Errorf("QE SVN %d: %s, %v; want %s", svn, r.Status, err, want)
		}
	}
	if r, _ := Evaluate(info, identity(), Platform{QEISVSVN: 3}); !r.Date.IsZero() || r.Status != NotSupported {
		t.Errorf("no level at all: %+v", r)
	}
}

// TestLevelsAreSorted: the first matching level counts, so the order of the document must not.
func TestLevelsAreSorted(t *testing.T) {
	t.Parallel()
	levels := []Level{
		level([16]byte{5, 5}, [16]byte{4}, 11, 2025, UpToDate), level([16]byte{5, 5}, [16]byte{3}, 11, 2024, OutOfDate),
		level([16]byte{5, 5}, [16]byte{9}, 5, 2023, ConfigurationNeeded), level([16]byte{5, 4, 9}, [16]byte{9}, 13, 2022, Revoked),
	}
	shuffled := &Info{Levels: []Level{levels[3], levels[1], levels[0], levels[2]}}
	if err := shuffled.sortLevels(); err != nil {
		t.Fatal(err)
	}
	for i := range levels {
		if shuffled.Levels[i].Status != levels[i].Status {
			t.Fatalf("level %d is %s", i, shuffled.Levels[i].Status)
		}
	}
	shuffled.Levels = append(shuffled.Levels, levels[0])
	if err := shuffled.sortLevels(); !errors.Is(err, ErrFormat) {
		t.Errorf("equal levels: %v", err)
	}
}

// tdxInfo has module identities of the major versions 3, 10 and 16: hexadecimal and decimal names differ in the last two.
func tdxInfo() *Info {
	identityOf := func(id string, svns ...uint16) ModuleLevel {
		m := ModuleLevel{ID: id}
		for i, svn := range svns {
			status := UpToDate
			if i > 0 {
				status = OutOfDate
			}
			m.Levels = append(m.Levels, ISVLevel{svn, date(2025 - i), status, []string{"INTEL-SA-" + id}})
		}
		return m
	}
	m16 := identityOf("TDX_10", 7)
	m16.MRSigner[0] = 0x16
	return &Info{ID: TDX, Module: new(Module), Modules: []ModuleLevel{identityOf("TDX_03", 4, 2), identityOf("TDX_0A", 5), m16}, Levels: []Level{
		level([16]byte{5, 5}, [16]byte{5, 0, 6}, 11, 2025, UpToDate),
		level([16]byte{5, 5}, [16]byte{4, 0, 5}, 11, 2024, OutOfDate, "INTEL-SA-T"),
		level([16]byte{4, 4}, [16]byte{3, 0, 5}, 11, 2023, OutOfDateConfigurationNeeded),
	}}
}

func tdPlatform(svn [16]byte) Platform {
	return Platform{Components: [16]byte{5, 5}, PCESVN: 11, QEISVSVN: 8, TD: &TD{TEETCBSVN: svn}}
}

func TestTDXSelection(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		svn    [16]byte
		want   Status
		module Status
	}{
		"module version 0, all current":          {[16]byte{5, 0, 6}, UpToDate, UpToDate},
		"module version 0, old module":           {[16]byte{4, 0, 6}, OutOfDate, UpToDate},
		"module version 0, module below all":     {[16]byte{2, 0, 9}, NotSupported, UpToDate},
		"SVN[1] > 0: SVN[0] is the module's own": {[16]byte{4, 3, 6}, UpToDate, UpToDate},
		"SVN[1] > 0: SVN[2] still counts":        {[16]byte{9, 3, 5}, OutOfDate, UpToDate},
		"SVN[1] > 0: module out of date":         {[16]byte{3, 3, 6}, OutOfDate, OutOfDate},
		"SVN[1] > 0: module below all":           {[16]byte{1, 3, 6}, NotSupported, NotSupported},
		"SVN[2] below all":                       {[16]byte{9, 3, 4}, NotSupported, UpToDate},
		"version 10 is TDX_0A":                   {[16]byte{5, 10, 6}, UpToDate, UpToDate},
	} {
		r, err := Evaluate(tdxInfo(), identity(), tdPlatform(tc.svn))
		if err != nil || r.Status != tc.want || r.Module == nil || r.Module.Status != tc.module {
			t.Errorf("%s: %+v, %v; want %s", name, r, err, tc.want)
		}
	}
	// The SGX part is compared with the SGX SVNs of the PCK certificate, never with those of the TD.
	p := tdPlatform([16]byte{9, 0, 9})
	p.Components = [16]byte{4, 4}
	if r, err := Evaluate(tdxInfo(), identity(), p); err != nil || r.Status != OutOfDateConfigurationNeeded {
		t.Errorf("low SGX part, high TD part: %+v, %v", r, err)
	}
	if r, err := Evaluate(tdxInfo(), identity(), tdPlatform([16]byte{3, 3, 6})); err != nil || !r.Date.Equal(date(2024)) ||
		!slices.Equal(r.Advisories, []string{"INTEL-SA-TDX_03"}) {
		t.Errorf("date and advisories: %+v, %v", r, err)
	}
}

func TestModuleRefused(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*Info, *TD){
		"no identity of version 2":           func(_ *Info, td *TD) { td.TEETCBSVN[1] = 2 },
		"version 16 is TDX_10, not TDX_16":   func(_ *Info, td *TD) { td.TEETCBSVN[1] = 16 }, // its signer differs
		"foreign signer":                     func(_ *Info, td *TD) { td.MRSignerSEAM[47] = 1 },
		"attributes":                         func(_ *Info, td *TD) { td.SEAMAttributes[7] = 1 },
		"attributes that the document wants": func(i *Info, td *TD) { i.Module.Attributes[0], td.SEAMAttributes[0] = 1, 1 },
		"attributes that the document lacks": func(i *Info, _ *TD) { i.Module.Attributes[0] = 1 },
		"no module in the document":          func(i *Info, _ *TD) { i.Module = nil },
	} {
		info, p := tdxInfo(), tdPlatform([16]byte{7, 0, 6})
		edit(info, p.TD)
		if r, err := Evaluate(info, identity(), p); !errors.Is(err, ErrModule) || r.Status != "" {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if err := info.CheckModule(p.TD); !errors.Is(err, ErrModule) {
			t.Errorf("%s: CheckModule: %v", name, err)
		}
	}
	info, p := tdxInfo(), tdPlatform([16]byte{7, 16, 6})
	p.TD.MRSignerSEAM[0] = 0x16
	if r, err := Evaluate(info, identity(), p); err != nil || r.Module.Advisories[0] != "INTEL-SA-TDX_10" {
		t.Errorf("version 16: %+v, %v", r, err)
	}
}

func TestRelaunch(t *testing.T) {
	t.Parallel()
	// Launched with a module of version 3 that is now out of date.
	launch := [16]byte{2, 3, 6}
	for name, tc := range map[string]struct {
		svn2 [16]byte
		edit func(*Info, *Platform)
		want Status
	}{
		"module updated":                 {[16]byte{4, 3, 6}, nil, TDRelaunchAdvised},
		"module updated to version 10":   {[16]byte{5, 10, 6}, nil, TDRelaunchAdvised},
		"module in force out of date":    {[16]byte{3, 3, 6}, nil, OutOfDate},
		"microcode in force out of date": {[16]byte{4, 3, 5}, nil, OutOfDate},
		"version 0 in force":             {[16]byte{5, 0, 6}, nil, TDRelaunchAdvised},
		"version 0 in force, old":        {[16]byte{4, 0, 6}, nil, OutOfDate},
		"configuration needed": {[16]byte{4, 3, 6}, func(i *Info, _ *Platform) { i.Levels[0].Status = ConfigurationNeeded },
			TDRelaunchAdvisedConfigurationNeeded},
		"QE out of date":        {[16]byte{4, 3, 6}, func(_ *Info, p *Platform) { p.QEISVSVN = 6 }, OutOfDate},
		"QE revoked":            {[16]byte{4, 3, 6}, func(_ *Info, p *Platform) { p.QEISVSVN = 4 }, Revoked},
		"SGX part out of date":  {[16]byte{4, 3, 6}, func(i *Info, _ *Platform) { i.Levels[0].Status = OutOfDate }, OutOfDate},
		"launched up to date":   {[16]byte{4, 3, 6}, func(_ *Info, p *Platform) { p.TD.TEETCBSVN[0] = 4 }, UpToDate},
		"platform revoked":      {[16]byte{4, 3, 6}, func(i *Info, _ *Platform) { i.Levels[0].Status = Revoked }, Revoked},
		"a level is not there":  {[16]byte{4, 3, 6}, func(_ *Info, p *Platform) { p.PCESVN = 1 }, NotSupported},
		"a module is not there": {[16]byte{4, 3, 6}, func(_ *Info, p *Platform) { p.TD.TEETCBSVN[0] = 1 }, NotSupported},
	} {
		info, p := tdxInfo(), tdPlatform(launch)
		p.TD.TEETCBSVN2 = &tc.svn2
		if tc.edit != nil {
			tc.edit(info, &p)
		}
		if r, err := Evaluate(info, identity(), p); err != nil || r.Status != tc.want {
			t.Errorf("%s: %s, %v; want %s", name, r.Status, err, tc.want)
		}
	}
	p := tdPlatform(launch)
	p.TD.TEETCBSVN2 = &[16]byte{4, 2, 6}
	if _, err := Evaluate(tdxInfo(), identity(), p); !errors.Is(err, ErrModule) {
		t.Errorf("unknown module in force: %v", err)
	}
}

func TestQEIdentity(t *testing.T) {
	t.Parallel()
	id := &Identity{
		MiscSelectMask: [4]byte{0xff, 0xff, 0xff, 0xff}, Attributes: [16]byte{0x11}, MRSigner: [32]byte{7}, ISVProdID: 1,
		AttributesMask: [16]byte{0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	good := EnclaveReport{Attributes: [16]byte{0x15, 8: 0xe7}, MRSigner: [32]byte{7}, ISVProdID: 1}
	if err := id.Check(good); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*EnclaveReport){
		"MISCSELECT": func(r *EnclaveReport) { r.MiscSelect[3] = 1 },
		"debug":      func(r *EnclaveReport) { r.Attributes[0] |= 2 },
		"attributes": func(r *EnclaveReport) { r.Attributes[0] = 0 },
		"signer":     func(r *EnclaveReport) { r.MRSigner[31] = 1 },
		"product":    func(r *EnclaveReport) { r.ISVProdID = 2 },
	} {
		r := good
		edit(&r)
		if err := id.Check(r); !errors.Is(err, ErrQE) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestVectors decodes every real document of the reference vectors, without their signatures.
func TestVectors(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("CLAVIGER_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	names, _ := filepath.Glob(filepath.Join(dir, "collateral", "*.json"))
	if len(names) == 0 {
		t.Skip("reference vectors are absent: set CLAVIGER_VECTORS to their folder")
	}
	infos, identities := 0, 0
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		outer, err := new(decoder).decode(raw)
		if err != nil || !json.Valid(raw) {
			t.Fatalf("%s: %v", filepath.Base(name), err)
		}
		r := newReader(outer, root("envelope"))
		if body, ok := r.lookup("tcbInfo"); ok {
			infos++
			_, err = parseInfo(body)
		} else {
			identities++
			_, err = parseIdentity(r.mustGet("enclaveIdentity"))
		}
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(name), err)
		}
		if !strings.HasPrefix(string(outer.members[0].text), "{") {
			t.Errorf("%s: raw inner object starts with %q", filepath.Base(name), outer.members[0].text[:1])
		}
	}
	if infos == 0 || identities == 0 {
		t.Fatalf("%d TCB infos, %d QE identities", infos, identities)
	}
	t.Logf("%d TCB infos and %d QE identities", infos, identities)
}

func (r *reader) mustGet(key string) value { v, _ := r.get(key, '{'); return v }
