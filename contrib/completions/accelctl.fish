# fish completion for accelctl
# accelerd: made by python -m accelerd.paper; installed and removed by packaging/install and uninstall

# What was typed before the word at the cursor, as a path: "toolbox pin".
function __accelctl_path
    set -l path
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        switch "$path $word"
            case ' --socket' 'status --socket' 'models --socket' 'load --socket' 'unload --socket' 'yield --socket' 'yield --for' 'yield --until' 'resume --socket' 'reset --socket' 'monitor --socket' 'logs --socket' 'logs -n' 'logs --lines' 'explain --socket' 'chat --socket' 'chat --system' 'chat --max-tokens' 'chat --temperature' 'add --socket' 'add --name' 'add --alias' 'add --context' 'add --parallel' 'add --memory' 'add --idle-timeout' 'remove --socket' 'tune --socket' 'toolbox --socket' 'config --socket' 'reload --socket' 'memory --socket' 'fit --socket' 'fit --ctx' 'fit --kv' 'fit --parallel' 'fit --gpu' 'devices --socket' 'doctor --socket' 'version --socket'
                set skip 1
            case ' status' ' models' ' load' ' unload' ' yield' ' resume' ' reset' ' monitor' ' logs' ' explain' ' chat' ' add' ' remove' ' tune' ' toolbox' ' config' ' reload' ' memory' ' fit' ' devices' ' doctor' ' version' 'toolbox list' 'toolbox refresh' 'toolbox pin' 'toolbox unpin' 'config check' 'config show' 'config schema' 'memory learned' 'memory forget'
                set -a path $word
        end
    end
    echo "$path"
end

function __accelctl_at
    set -l path (__accelctl_path); and test "$path" = "$argv"
end

# How many words that are no options follow the commands: fails unless there are as many as the first argument says.
function __accelctl_word
    __accelctl_at $argv[2..-1]; or return
    set -l count 0
    set -l skip 0
    set -l path
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        switch "$path $word"
            case ' --socket' 'status --socket' 'models --socket' 'load --socket' 'unload --socket' 'yield --socket' 'yield --for' 'yield --until' 'resume --socket' 'reset --socket' 'monitor --socket' 'logs --socket' 'logs -n' 'logs --lines' 'explain --socket' 'chat --socket' 'chat --system' 'chat --max-tokens' 'chat --temperature' 'add --socket' 'add --name' 'add --alias' 'add --context' 'add --parallel' 'add --memory' 'add --idle-timeout' 'remove --socket' 'tune --socket' 'toolbox --socket' 'config --socket' 'reload --socket' 'memory --socket' 'fit --socket' 'fit --ctx' 'fit --kv' 'fit --parallel' 'fit --gpu' 'devices --socket' 'doctor --socket' 'version --socket'
                set skip 1
            case ' status' ' models' ' load' ' unload' ' yield' ' resume' ' reset' ' monitor' ' logs' ' explain' ' chat' ' add' ' remove' ' tune' ' toolbox' ' config' ' reload' ' memory' ' fit' ' devices' ' doctor' ' version' 'toolbox list' 'toolbox refresh' 'toolbox pin' 'toolbox unpin' 'config check' 'config show' 'config schema' 'memory learned' 'memory forget'
                set -a path $word
            case '* -*'
            case '*'
                set count (math $count + 1)
        end
    end
    test $count = $argv[1]
end

complete -c accelctl -f
complete -c accelctl -n '__accelctl_at' -a status -d 'what is loaded, what it takes, who waits'
complete -c accelctl -n '__accelctl_at' -a models -d 'every configured model'
complete -c accelctl -n '__accelctl_at' -a load -d 'load a model and wait until it is ready'
complete -c accelctl -n '__accelctl_at' -a unload -d 'stop a model, after its running requests or with --force at once'
complete -c accelctl -n '__accelctl_at' -a yield -d 'empty the GPU for a game, or another program, until resume'
complete -c accelctl -n '__accelctl_at' -a resume -d 'end what yield began: models may use the GPU again'
complete -c accelctl -n '__accelctl_at' -a reset -d 'forget the failures of a model, so that it is tried again'
complete -c accelctl -n '__accelctl_at' -a monitor -d 'what happens, as it happens: models, devices, jobs, yields, pins'
complete -c accelctl -n '__accelctl_at' -a logs -d 'what a model\'s engine printed'
complete -c accelctl -n '__accelctl_at' -a explain -d 'why a model runs as it does: command line, placement, history'
complete -c accelctl -n '__accelctl_at' -a chat -d 'talk to a model'
complete -c accelctl -n '__accelctl_at' -a add -d 'add a model to the configuration'
complete -c accelctl -n '__accelctl_at' -a remove -d 'remove a model that `accelctl add` added'
complete -c accelctl -n '__accelctl_at' -a tune -d 'measure a model in several ways of running it, and keep the best'
complete -c accelctl -n '__accelctl_at' -a toolbox -d 'list, refresh and pin the toolboxes that models run in'
complete -c accelctl -n '__accelctl_at' -a config -d 'check, show or describe the configuration'
complete -c accelctl -n '__accelctl_at' -a reload -d 'read the configuration again; unchanged models keep running'
complete -c accelctl -n '__accelctl_at' -a memory -d 'who holds which memory, what waits for some; what was learned of models'
complete -c accelctl -n '__accelctl_at' -a fit -d 'will a model run here, with what context, how fast; before it is downloaded'
complete -c accelctl -n '__accelctl_at' -a devices -d 'GPUs and NPUs: what they are, what they do, who uses their memory'
complete -c accelctl -n '__accelctl_at' -a doctor -d 'what is missing on this machine, and the command that fixes it'
complete -c accelctl -n '__accelctl_at' -a version -d 'versions of accelctl and of the daemon'
complete -c accelctl -n '__accelctl_at' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at' -l version -d 'print the version'
complete -c accelctl -n '__accelctl_at status' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at status' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at status' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_word 0 status'  -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at models' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at models' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at models' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at models' -l names -d 'only the names, one a line; those configured where accelerd does not run'
complete -c accelctl -n '__accelctl_at load' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at load' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at load' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_word 0 load'  -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at unload' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at unload' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at unload' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at unload' -l force -d 'end running requests instead of waiting for them'
complete -c accelctl -n '__accelctl_word 0 unload'  -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at yield' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at yield' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at yield' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at yield' -l for -x -d 'for so long: "2h", "45m"; else until accelctl resume'
complete -c accelctl -n '__accelctl_at yield' -l until -x -d 'until this time of day'
complete -c accelctl -n '__accelctl_at yield' -l now -d 'end running requests instead of waiting for them'
complete -c accelctl -n '__accelctl_at yield' -l all -d 'models in main memory too'
complete -c accelctl -n '__accelctl_at resume' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at resume' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at resume' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at reset' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at reset' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at reset' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_word 0 reset'  -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at monitor' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at monitor' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at monitor' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_word 0 monitor'  -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at logs' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at logs' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at logs' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at logs' -s f -l follow -d 'go on with what the engine prints next'
complete -c accelctl -n '__accelctl_at logs' -s n -l lines -x -d 'only the last N lines'
complete -c accelctl -n '__accelctl_word 0 logs'  -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at explain' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at explain' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at explain' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_word 0 explain'  -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at chat' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at chat' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at chat' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at chat' -l system -x -d 'instructions for the model'
complete -c accelctl -n '__accelctl_at chat' -l max-tokens -x -d 'end an answer after N tokens'
complete -c accelctl -n '__accelctl_at chat' -l temperature -x -d '0 is repeatable, 1 is lively'
complete -c accelctl -n '__accelctl_word 0 chat'  -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at add' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at add' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at add' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at add' -l name -x -d 'what requests call it; by default made from the file\'s name'
complete -c accelctl -n '__accelctl_at add' -l alias -x -d 'another name, may be repeated'
complete -c accelctl -n '__accelctl_at add' -l context -x -d 'tokens per request'
complete -c accelctl -n '__accelctl_at add' -l parallel -x -d 'requests at once'
complete -c accelctl -n '__accelctl_at add' -l memory -x -d 'what to reserve, "12GiB"; by default from the file'
complete -c accelctl -n '__accelctl_at add' -l idle-timeout -x -d 'put away when idle for "10min", or "never"'
complete -c accelctl -n '__accelctl_at add' -l preload -d 'load it when accelerd starts'
complete -c accelctl -n '__accelctl_at add' -l pin -d 'never put it away for another model'
complete -c accelctl -n '__accelctl_at add' -l embeddings -d 'it is an embedding model'
complete -c accelctl -n '__accelctl_at add' -l no-pull -d 'do not fetch a model for the NPU that is not here'
complete -c accelctl -n '__accelctl_at add' -l replace -d 'overwrite the drop-in of that name'
complete -c accelctl -n '__accelctl_at add' -l dry-run -d 'print what would be written, and end'
complete -c accelctl -n '__accelctl_word 0 add' -F
complete -c accelctl -n '__accelctl_at remove' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at remove' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at remove' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_word 0 remove'  -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at tune' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at tune' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at tune' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at tune' -l quick -d 'fewer ways, fewer repeats'
complete -c accelctl -n '__accelctl_at tune' -l force -d 'also while other models work, which falsifies numbers'
complete -c accelctl -n '__accelctl_at tune' -l yes -d 'write the best without asking'
complete -c accelctl -n '__accelctl_at tune' -l no -d 'measure only'
complete -c accelctl -n '__accelctl_word 0 tune'  -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at toolbox' -a list -d 'every toolbox: its build of llama.cpp, its image, the models in it'
complete -c accelctl -n '__accelctl_at toolbox' -a refresh -d 'make a toolbox anew from the newest version of its image, and move its models'
complete -c accelctl -n '__accelctl_at toolbox' -a pin -d 'refuse to refresh a toolbox, until it is unpinned'
complete -c accelctl -n '__accelctl_at toolbox' -a unpin -d 'let a toolbox be refreshed again'
complete -c accelctl -n '__accelctl_at toolbox' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at toolbox' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at toolbox' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at toolbox list' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at toolbox list' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at toolbox list' -l known -d 'the known images too, also those that are not here'
complete -c accelctl -n '__accelctl_at toolbox list' -l names -d 'only the names, one a line, also without accelerd'
complete -c accelctl -n '__accelctl_at toolbox refresh' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at toolbox refresh' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at toolbox refresh' -l force -d 'also from the same image; and when somebody is inside: the old one stays until they leave'
complete -c accelctl -n '__accelctl_word 0 toolbox refresh'  -a '(accelctl toolbox list --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at toolbox pin' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at toolbox pin' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_word 0 toolbox pin'  -a '(accelctl toolbox list --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at toolbox unpin' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at toolbox unpin' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_word 0 toolbox unpin'  -a '(accelctl toolbox list --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at config' -a check -d 'report every mistake, with file, line, key and what was expected'
complete -c accelctl -n '__accelctl_at config' -a show -d 'the configuration as accelerd understands it, with the origin of each value'
complete -c accelctl -n '__accelctl_at config' -a schema -d 'a JSON Schema, with which editors complete the file'
complete -c accelctl -n '__accelctl_at config' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at config' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at config' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at config check' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at config check' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at config show' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at config show' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at config schema' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at config schema' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at reload' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at reload' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at reload' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at memory' -a learned -d 'what models were measured to need, beside what was estimated'
complete -c accelctl -n '__accelctl_at memory' -a forget -d 'estimate a model again, whatever was measured before'
complete -c accelctl -n '__accelctl_at memory' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at memory' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at memory' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at memory' -l watch -d 'show it anew every second, until Ctrl-C'
complete -c accelctl -n '__accelctl_at memory learned' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at memory learned' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at memory forget' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at memory forget' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at memory forget' -l all -d 'all models'
complete -c accelctl -n '__accelctl_word 0 memory forget'  -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at fit' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at fit' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at fit' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at fit' -l ctx -x -d 'tokens of one request, "32768" or "32k"; or "model"'
complete -c accelctl -n '__accelctl_at fit' -l kv -x -a 'f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0 iq4_nl' -d 'type of the KV cache: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl'
complete -c accelctl -n '__accelctl_at fit' -l parallel -x -d 'requests at once'
complete -c accelctl -n '__accelctl_at fit' -l gpu -x -d 'only on this GPU, "c1:00.0"; or "none"'
complete -c accelctl -n '__accelctl_word 0 fit' -F -a '(accelctl models --names 2>/dev/null)'
complete -c accelctl -n '__accelctl_at devices' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at devices' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at devices' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at devices' -l watch -d 'show it anew every second, until Ctrl-C'
complete -c accelctl -n '__accelctl_at doctor' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at doctor' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at doctor' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
complete -c accelctl -n '__accelctl_at doctor' -l devices -d 'list the devices, with the vendors\' libraries asked too'
complete -c accelctl -n '__accelctl_at version' -s h -l help -d 'show this help message'
complete -c accelctl -n '__accelctl_at version' -l json -d 'print JSON for programs'
complete -c accelctl -n '__accelctl_at version' -l socket -r -F -d 'this socket, instead of the session bus, $ACCELERD_SOCKET or the usual one'
