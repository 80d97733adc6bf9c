package archivetest

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// bytes plays the adversary who knows nothing of the format: every byte of every
// file, or, where reading is slow, some at equal distances.
func (tb *table) bytes() {
	w := tb.w
	for _, name := range w.kept.names() {
		size, short, each := len(w.kept[name]), filepath.Base(name), "each byte"
		if w.k.Stride > 1 {
			each = fmt.Sprintf("every %dth byte", w.k.Stride)
		}
		tb.sweep("flip", fmt.Sprintf("%s of %s (%d)", each, short, size), name, func(b []byte, i int) []byte { b[i] ^= 0xff; return b })
		tb.sweep("cut", fmt.Sprintf("%s at %s", short, each), name, func(b []byte, i int) []byte { return b[:i] })
		tb.sweep("duplicate", fmt.Sprintf("%s, %s", short, each), name, func(b []byte, i int) []byte { return slices.Insert(b, i, b[i]) })
	}
	whole := func(class, what string, img image) { tb.add(class, what, tb.read(img)) }
	whole("replay", "the disk as it was earlier", w.older)
	whole("mix", "another boot's disk under this id", w.other.disk)
	whole("mix", "another cluster's disk under this id", w.cluster.disk)
	whole("mix", "another epoch's disk under this id", w.epoch.disk)
	last := w.kept.names()[len(w.kept)-1]
	whole("grow", "the last file, 8 MB of zeros behind it", w.kept.with(last, append(slices.Clone(w.kept[last]), make([]byte, 8<<20)...)))
	whole("grow", "the last file, 8 MB of 0xff behind it", w.kept.with(last, append(slices.Clone(w.kept[last]), slices.Repeat([]byte{0xff}, 8<<20)...)))
	whole("grow", "a hundred files nobody asked for", w.kept.crowd())
	whole("cut", "the directory is empty", image{filepath.Join(w.me.id().String(), "x"): nil})
}

func (img image) with(name string, b []byte) image {
	c := img.clone()
	c[name] = b
	return c
}

func (img image) without(names ...string) image {
	c := img.clone()
	for _, n := range names {
		delete(c, n)
	}
	return c
}

func (img image) crowd() image {
	c, dir := img.clone(), filepath.Dir(img.names()[0])
	for i := range 100 {
		c[filepath.Join(dir, fmt.Sprintf("x%d.records", i))] = []byte("x")
	}
	return c
}

// sweep makes one change to a file at each place and sums up how reading ended.
func (tb *table) sweep(class, name, file string, change func(b []byte, i int) []byte) {
	tb.t.Helper()
	ends, root := map[string]int{}, tb.w.kept.write(tb.t)
	for i := 0; i < len(tb.w.kept[file]); i += max(tb.w.k.Stride, 1) {
		b := change(slices.Clone(tb.w.kept[file]), i)
		if err := os.WriteFile(filepath.Join(root, file), b, 0o600); err != nil {
			tb.t.Fatal(err)
		}
		o := tb.judge(tb.w.kept, tb.w.k.Records(tb.t, root, tb.w.me.id()))
		if o.whole() {
			ends["opens all"]++
		} else {
			ends["opens less, "+o.why]++
		}
	}
	var parts []string
	for why, n := range sorted(ends) {
		parts = append(parts, fmt.Sprintf("%d × %s", n, why))
	}
	tb.rows = append(tb.rows, row{class, name, strings.Join(parts, "; ")})
}

// sorted goes through a map in the order of its keys, so that tables of two runs can be compared.
func sorted[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// segments plays the adversary who knows the append-only files.
func (tb *table) segments() {
	w := tb.w
	segs := w.kept.names()
	if len(segs) != 3 {
		tb.t.Fatalf("the archive has the files %q, want three parts", segs)
	}
	dir := filepath.Dir(segs[0])
	first, fourth := filepath.Join(dir, "first"), filepath.Join(dir, "00000004.records")
	seg := func(i int) []byte { return slices.Clone(w.kept[segs[i]]) }
	add := func(class, name string, img image) { tb.add(class, name, tb.read(img)) }
	length := func(at int, n uint32) image {
		b := seg(1)
		binary.BigEndian.PutUint32(b[at:], n)
		return w.kept.with(segs[1], b)
	}
	second := 4 + int(binary.BigEndian.Uint32(seg(1))) // where the second record of the second file begins
	for name, n := range sorted(map[string]uint32{"0": 0, "1": 1, "the largest": uint32(w.k.MaxRecord), "one above the largest": uint32(w.k.MaxRecord) + 1, "4 GiB": 0xffffffff}) {
		add("flip", "a length becomes "+name, length(second, n))
	}
	add("swap", "the first two files", w.kept.with(segs[0], seg(1)).with(segs[1], seg(0)))
	add("swap", "the last two files", w.kept.with(segs[1], seg(2)).with(segs[2], seg(1)))
	add("cut", "the first file is missing", w.kept.without(segs[0]))
	add("cut", "the middle file is missing", w.kept.without(segs[1]))
	add("cut", "the last file is missing", w.kept.without(segs[2]))
	add("cut", "the middle file is empty", w.kept.with(segs[1], nil))
	add("duplicate", "the last file once more behind itself", w.kept.with(fourth, seg(2)))
	add("mix", "the last file of another boot", w.kept.with(segs[2], w.other.disk[segs[2]]))
	add("mix", "the last file of another epoch", w.kept.with(segs[2], w.epoch.disk[segs[2]]))
	add("mix", "the last file of a clone", w.kept.with(segs[2], w.clone.disk[segs[2]]))
	for name, hint := range sorted(map[string]string{"2": "00000002", "3": "00000003", "0": "00000000", "beyond": "00000099", "rubbish": "garbage!", "long": strings.Repeat("1", 1<<20)}) {
		add("flip", "the note where to begin says "+name, w.kept.with(first, []byte(hint)))
	}
	add("grow", "the middle file is a directory", w.kept.without(segs[1]).with(filepath.Join(segs[1], "x"), nil))
}

// Offsets in a page of bbolt and in its heads, and the sum over a head.
const (
	pageType, pageCount, pageElements           = 8, 10, 16
	headMagic, headPageSize, headRoot, headFree = 16, 24, 32, 48
	headHigh, headTxid, headSum                 = 56, 64, 72
	pageBranch, pageLeaf                        = 1, 2
)

func sumHead(page []byte) {
	h := fnv.New64a()
	h.Write(page[headMagic:headSum])
	binary.LittleEndian.PutUint64(page[headSum:], h.Sum64())
}

// pages plays the adversary who knows bbolt's pages, and keeps their sums right.
func (tb *table) pages() {
	w := tb.w
	name := w.kept.names()[0]
	le := binary.LittleEndian
	change := func(class, what string, f func(b []byte)) {
		img := w.kept.clone()
		f(img[name])
		tb.add(class, what, tb.read(img))
	}
	heads := func(b []byte, f func(page []byte)) {
		for i := range headPages {
			page := b[i*pageSize : (i+1)*pageSize]
			f(page)
			sumHead(page)
		}
	}
	for what, f := range sorted(map[string]func([]byte){
		"the root page is far outside":         func(p []byte) { le.PutUint64(p[headRoot:], 1<<40) },
		"the root page is one behind the file": func(p []byte) { le.PutUint64(p[headRoot:], uint64(len(w.kept[name])/pageSize)) },
		"the root page is a head":              func(p []byte) { le.PutUint64(p[headRoot:], 0) },
		"the free list is far outside":         func(p []byte) { le.PutUint64(p[headFree:], 1<<40) },
		"the page size is 2 GiB":               func(p []byte) { le.PutUint32(p[headPageSize:], 1<<31) },
		"the page size is 0":                   func(p []byte) { le.PutUint32(p[headPageSize:], 0) },
		"the file claims 2^60 pages":           func(p []byte) { le.PutUint64(p[headHigh:], 1<<60) },
		"the transaction is the last there is": func(p []byte) { le.PutUint64(p[headTxid:], 1<<64-1) },
		"another magic":                        func(p []byte) { p[headMagic] ^= 1 },
	}) {
		change("flip", "head: "+what, func(b []byte) { heads(b, f) })
	}
	change("cut", "the newer head is destroyed", func(b []byte) { clear(b[newerHead(b)*pageSize:][:pageSize]) })
	change("cut", "both heads are destroyed", func(b []byte) { clear(b[:headPages*pageSize]) })
	for kind, want := range sorted(map[string]uint16{"leaf": pageLeaf, "branch": pageBranch}) {
		at := slices.Collect(pagesOf(w.kept[name], want))
		if len(at) == 0 {
			continue
		}
		each := func(what string, f func(p []byte)) {
			change("flip", fmt.Sprintf("%s pages (%d): %s", kind, len(at), what), func(b []byte) {
				for _, i := range at {
					f(b[i*pageSize : (i+1)*pageSize])
				}
			})
		}
		each("65535 elements", func(p []byte) { le.PutUint16(p[pageCount:], 0xffff) })
		each("no elements", func(p []byte) { le.PutUint16(p[pageCount:], 0) })
		each("of a type that is none", func(p []byte) { le.PutUint16(p[pageType:], 0x77) })
		each("elements far outside", func(p []byte) { le.PutUint32(p[pageElements+4:], 0x7fffff00) })
		each("keys of 2 GiB", func(p []byte) { le.PutUint32(p[pageElements+8:], 0x7fffffff) })
		each("values of 2 GiB", func(p []byte) { le.PutUint32(p[pageElements+12:], 0x7fffffff) })
		each("each a branch to itself", func(p []byte) {
			le.PutUint16(p[pageType:], pageBranch)
			le.PutUint16(p[pageCount:], 1)
			copy(p[pageElements+8:pageElements+16], p[:8]) // the page's own number
		})
	}
	count := len(w.kept[name]) / pageSize
	for i := headPages; i+1 < count; i += max(1, count/4) {
		change("swap", fmt.Sprintf("pages %d and %d", i, i+1), func(b []byte) {
			one := slices.Clone(b[i*pageSize : (i+1)*pageSize])
			copy(b[i*pageSize:], b[(i+1)*pageSize:(i+2)*pageSize])
			copy(b[(i+1)*pageSize:], one)
		})
	}
	change("mix", "the pages of another boot behind this file's heads", func(b []byte) { copy(b[headPages*pageSize:], w.other.disk[name][headPages*pageSize:]) })
	change("replay", "the earlier pages behind the newest heads", func(b []byte) { copy(b[headPages*pageSize:], w.older[name][headPages*pageSize:]) })
	add := func(class, what string, b []byte) { tb.add(class, what, tb.read(w.kept.with(name, b))) }
	add("cut", "the file is empty", nil)
	add("cut", "only the heads are left", slices.Clone(w.kept[name][:headPages*pageSize]))
	add("cut", "half of the file is left", slices.Clone(w.kept[name][:count/2*pageSize]))
}

func newerHead(b []byte) int {
	if binary.LittleEndian.Uint64(b[headTxid:]) > binary.LittleEndian.Uint64(b[pageSize+headTxid:]) {
		return 0
	}
	return 1
}

// pagesOf lists the numbers of the pages of one type that say their own number.
func pagesOf(b []byte, want uint16) func(func(int) bool) {
	return func(yield func(int) bool) {
		for i := headPages; (i+1)*pageSize <= len(b); i++ {
			p := b[i*pageSize:]
			if binary.LittleEndian.Uint64(p) == uint64(i) && binary.LittleEndian.Uint16(p[pageType:]) == want && !yield(i) {
				return
			}
		}
	}
}
