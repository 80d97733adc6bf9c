package persist

// Size returns the bytes of a store's files, and whether there are any, as the file layer says: the host decides the
// answer.
func Size(files Files, name string) (bytes int64, found bool, err error) {
	if err := checkName(name); err != nil {
		return 0, false, err
	}
	o := Options{Files: files, Name: name}
	for i := range 2 {
		f, err := openOrNil(files, o.slotName(i))
		if err != nil {
			return 0, false, err
		}
		if f == nil {
			continue
		}
		size, err := f.Size()
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return 0, false, err
		}
		bytes += size
		found = found || size > 0 || i == 0
	}
	return bytes, found, nil
}

// Bytes returns the accounted bytes of the newest confirmed state, all of it held in memory: keys, values, and 96 for each
// entry.
func (m *Map) Bytes() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.bytes
}
