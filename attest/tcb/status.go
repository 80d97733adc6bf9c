package tcb

// Status is a TCB status, spelled exactly as Intel's collateral and verification library spell it. The zero Status is
// not a status and equals none of them.
type Status string

// The statuses that an evaluation can end in.
const (
	UpToDate                             Status = "UpToDate"
	SWHardeningNeeded                    Status = "SWHardeningNeeded"
	ConfigurationNeeded                  Status = "ConfigurationNeeded"
	ConfigurationAndSWHardeningNeeded    Status = "ConfigurationAndSWHardeningNeeded"
	OutOfDate                            Status = "OutOfDate"
	OutOfDateConfigurationNeeded         Status = "OutOfDateConfigurationNeeded"
	Revoked                              Status = "Revoked"
	NotSupported                         Status = "NotSupported"
	TDRelaunchAdvised                    Status = "TDRelaunchAdvised"
	TDRelaunchAdvisedConfigurationNeeded Status = "TDRelaunchAdvisedConfigurationNeeded"
)

// signed reports whether Intel's collateral may carry s as the status of a TCB level. NotSupported and the relaunch
// statuses come only from evaluation.
func (s Status) signed() bool {
	switch s {
	case UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded,
		OutOfDate, OutOfDateConfigurationNeeded, Revoked:
		return true
	}
	return false
}

// Merge combines the platform's status with that of a component, the QE or the TDX module. The platform's status comes
// first: a component can only push it to Revoked, to NotSupported or to one of the two out-of-date statuses; any other
// component status changes nothing. Components are merged one after the other, and NotSupported is never undone.
//
// Source: Intel SGX DCAP Quote Verification Library, "convergeTcbStatusWithTdxModuleStatus" and
// "convergeTcbStatusWithQeTcbStatus".
func Merge(platform, component Status) Status {
	switch component {
	case NotSupported:
		return NotSupported
	case Revoked:
		if platform != NotSupported {
			return Revoked
		}
	case OutOfDate:
		switch platform {
		case UpToDate, SWHardeningNeeded:
			return OutOfDate
		case ConfigurationNeeded, ConfigurationAndSWHardeningNeeded:
			return OutOfDateConfigurationNeeded
		}
	}
	return platform
}
